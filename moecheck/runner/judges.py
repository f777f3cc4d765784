"""Processes that judge what kernels returned: the references' work is spread over the cores."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from threadpoolctl import threadpool_limits

from moecheck.errors import HarnessError
from moecheck.oracle import Oracle
from moecheck.runner.input_store import shared_inputs
from moecheck.runner.leash import bind
from moecheck.runner.pool import start_context

P = ParamSpec("P")
R = TypeVar("R")

_oracle: Oracle | None = None


class Judging(Protocol):
    """Calls a function with an oracle in front of its arguments, in this process or in another one."""

    def __call__(self, function: Callable[Concatenate[Oracle, P], R], *args: P.args, **kwargs: P.kwargs) -> R: ...


class Here:
    """Judges in this process, with an oracle of its own."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def __call__(self, function: Callable[Concatenate[Oracle, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        return function(self._oracle, *args, **kwargs)


class JudgePool:
    """Several processes that share what they compute. Functions, arguments and results are pickled.

    store: folder of the run's inputs and of the reference's results. threads: of one process's matrix products.
    """

    def __init__(self, processes: int, *, store: str, threads: int) -> None:
        self._judges = [_Process(store, threads) for _ in range(processes)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for judge in self._judges:
            self._idle.put(judge)

    def __call__(self, function: Callable[Concatenate[Oracle, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        judge = self._idle.get()
        try:
            result: R = judge.call(function, args, kwargs)
            return result
        finally:
            self._idle.put(judge)

    def close(self) -> None:
        """End the processes, also in the middle of a call."""
        for judge in self._judges:
            judge.close()

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Process:
    """One of them. Each has a pool and a pipe of its own: one that is killed holds no lock that another waits for."""

    def __init__(self, store: str, threads: int) -> None:
        context = start_context()
        self._leash, self._hand = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_start, initargs=(store, threads, self._leash)
        )

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self._pool.submit(_judge, function, args, kwargs).result()
        except BrokenProcessPool as error:
            raise HarnessError(
                "A process that judges was ended from outside, as the system does when memory runs out; "
                "try again with fewer --jobs."
            ) from error

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._hand.close()
        self._leash.close()


def _start(store: str, threads: int, leash: Connection) -> None:
    global _oracle  # set once, before the process judges anything
    bind(leash)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the run ends this one
    threadpool_limits(threads, "blas")
    _oracle = Oracle(load=lambda case: shared_inputs(case, store), folder=store, threads=threads)


def _judge(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    assert _oracle is not None
    return function(_oracle, *args, **kwargs)
