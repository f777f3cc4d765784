"""A server pair from the command line."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from moecheck.cli.e2e import Options
from moecheck.cli.e2e_data import task_data
from moecheck.errors import UsageError
from moecheck.evals.backends.openai_client import ServerGone
from moecheck.evals.backends.server import ServerBackend, is_url
from moecheck.evals.paired.result import RunResult
from moecheck.evals.paired.server_run import run_server_pair
from moecheck.evals.paired.settings import Settings
from moecheck.evals.paired.watcher import Watcher
from moecheck.evals.report.folder import RunFolder


def run_servers(options: Options, folder: RunFolder, watcher: Watcher) -> RunResult:
    """Ask both servers; raises UsageError telling how to go on where one of them dies."""
    if options.early_stop:
        raise UsageError("--early-stop asks both arms in turn, and servers are asked one after the other.")
    where = {"baseline": options.baseline or "", "candidate": options.candidate or ""}
    log_has = {"baseline": options.baseline_log_has, "candidate": options.candidate_log_has}
    for name, words in log_has.items():
        if words is not None and is_url(where[name]):
            raise UsageError(f"--{name}-log-has reads the log of a command; {where[name]} is an address.")
    data = task_data(options, embedded=False)
    extra: dict[str, Any] = {} if options.max_new_tokens is None else {"max_new_tokens": options.max_new_tokens}
    settings = Settings(
        questions=data.questions,
        data=data.words,
        shots=data.shots,
        # What is in flight at a time: servers make their batches themselves.
        batch_size=options.batch_size or 4 * options.concurrency,
        precision=options.dtype,  # type: ignore[arg-type]  # checked against the same names
        margin=options.margin,
        seed=options.seed,
        harness=options.harness or data.harness,  # type: ignore[arg-type]  # checked
        **extra,
    )

    def open_arm(name: str) -> ServerBackend:
        return ServerBackend(
            where[name],
            name=name,
            served=options.served_model,
            log=folder.path / f"{name}.log",
            start_timeout=options.start_timeout,
            concurrency=options.concurrency,
        )

    with _ended_politely():
        try:
            return run_server_pair(
                open_arm, settings, journal=folder.journal, watcher=watcher, log_has=log_has, files=data.files
            )
        except ServerGone as error:
            raise UsageError(f"{error} Answers so far are kept: go on with --resume {folder.path}") from error


@contextmanager
def _ended_politely() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, so that servers are stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
