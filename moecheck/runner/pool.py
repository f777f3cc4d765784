"""One worker process for one kernel: calls with a timeout, crash recovery, a memory limit (by pebble)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType
from typing import Any

from pebble import ProcessExpired, ProcessPool

from moecheck.runner import PRELOAD_VARIABLE
from moecheck.runner.crash_log import last_words
from moecheck.runner.worker import CLEAN_EXIT, DEVICE_LOST, initialise

GIB = 1 << 30


class WorkerDied(Exception):
    """The process ended during the call; the text says how."""


class WorkerTimeout(Exception):
    """The call took longer than its timeout; the process was stopped."""


class KernelPool:
    """A single worker process, replaced when it dies. Not shared between kernels.

    memory: bytes that it may allocate. store: folder of inputs that the processes of a run share.
    """

    def __init__(self, *, memory: int, threads: int, store: str | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="moecheck-")
        self._log = Path(self._folder.name) / "output.txt"
        self._initial = (str(self._log), memory, threads, store)
        self._closed = False
        self._pending: set[Any] = set()  # the pool forgets them when it is stopped
        self._open()

    def _open(self) -> None:
        context = start_context()
        self._leash, self._hand = context.Pipe(duplex=False)
        self._pool = ProcessPool(
            max_workers=1, context=context, initializer=initialise, initargs=(*self._initial, self._leash)
        )

    def submit(self, function: Callable[..., Any], *args: Any, timeout: float, **kwargs: Any) -> Any:
        """Start a call; hand the result to `wait`. The timeout in seconds counts from when the worker takes it up."""
        if not self._pool.active and not self._closed:
            self._release()
            self._open()
        future = self._pool.schedule(function, args=args, kwargs=kwargs, timeout=timeout)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def wait(self, future: Any) -> Any:
        """The call's result. Raises WorkerDied or WorkerTimeout."""
        try:
            return future.result()
        except (FutureTimeout, ProcessExpired, BrokenProcessPool) as error:
            raise self._reason(error) from error

    def _reason(self, error: Exception) -> Exception:
        if self._closed:  # the end of the process was ours
            return CancelledError()
        if isinstance(error, FutureTimeout):
            return WorkerTimeout()
        if isinstance(error, ProcessExpired):
            return WorkerDied(self._how(error.exitcode))
        # Something that an earlier call left running ended it.
        return WorkerDied(f"Its process ended between two calls; {last_words(self._log) or 'nothing was printed'}.")

    def cancel(self, future: Any) -> None:
        """Give up a call, also one that is running; None is no call."""
        if future is not None:
            future.cancel()

    def interrupt(self) -> None:
        """Called from another thread: whoever waits for a call gets a CancelledError and so comes to `close`."""
        self._closed = True
        for future in list(self._pending):
            future.cancel()

    def close(self) -> None:
        """Stop the process, also in the middle of a call."""
        self.interrupt()
        self._release()
        self._folder.cleanup()

    def renew(self) -> None:
        """Go on in a fresh process; no call may be waited for."""
        self._release()
        self._open()

    def _release(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]  # pebble leaves it untyped
        self._pool.join()
        self._hand.close()
        self._leash.close()

    def __enter__(self) -> KernelPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _how(self, code: int | None) -> str:
        code = 0 if code in (None, CLEAN_EXIT) else code
        tail = last_words(self._log)
        if code == DEVICE_LOST:
            return last_words(self._log, lines=1)
        how = f"exit code {code}"
        if code < 0:
            how = (
                f"signal {-code} ({signal.Signals(-code).name})" if -code in set(signal.Signals) else f"signal {-code}"
            )
        return f"Its process ended with {how}" + (f"; it printed: {tail}" if tail else "") + "."


def default_memory(jobs: int) -> int:
    """Bytes that one kernel's process may allocate: half of the machine's memory shared by the jobs, 16 GiB at most."""
    return min(16 * GIB, full_size_memory(jobs))


def full_size_memory(jobs: int) -> int:
    """The same for layers in full size, whose weights alone may be more than 16 GiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(2 * GIB, total // 2 // max(jobs, 1))


@cache
def start_context() -> BaseContext:
    """A fork server that has already imported what most workers need: a fresh worker starts in milliseconds.

    The server only imports, see `moecheck.runner.preload`, so it holds no threads and no device when it forks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moecheck.runner.preload"])
    # It must not take a file of the current folder, such as profile.py, for the standard library's.
    unsafe = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if unsafe is not None:
            os.environ["PYTHONSAFEPATH"] = unsafe
    return context


def preload_third_party() -> None:
    """Have the fork server import large third-party packages too; only before its first worker starts."""
    os.environ[PRELOAD_VARIABLE] = "1"
