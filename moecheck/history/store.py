"""An append-only SQLite file: a night is one transaction, so that two writers and a kill lose and double nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pandas as pd

from moecheck.errors import UsageError
from moecheck.history import frames
from moecheck.history.records import Night, Run, Status
from moecheck.history.schema import SCHEMA, statements

WAIT = 60.0  # seconds that a writer waits for another one
FAILURES_KEPT = 50  # of one subject; the folder of the run has all


class History:
    """An open history; use it in a `with`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self.path = connection, path

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> History:
        """The history in a file, a new one where there is none. read_only: it must exist, and nothing is written.

        Raises UsageError for a file that cannot be read, is no history, or was written by a later version.
        """
        if read_only and not path.is_file():
            raise UsageError(f"{path} does not exist: there is no history yet; moecheck nightly begins one.")
        try:
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            mode = "ro" if read_only else "rwc"
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=WAIT, isolation_level=None
            )
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"Cannot open the history {path}: {_reason(error)}.") from error
        history = cls(connection, path)
        try:
            history._prepare(read_only=read_only)
        except BaseException:
            connection.close()
            raise
        return history

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def add(self, night: Night) -> bool:
        """Keep a night with all that belongs to it; False when it is there already, and then nothing changes."""
        with self._transaction() as write:
            values = (night.night, night.name, night.started, night.seconds, night.exit_code)
            more = (night.folder, night.machine, night.git, night.seed)
            if not _insert(write, "nights", [(*values, *more)]):
                return False
            for run in night.runs:
                if not _add_run(write, run, night.night):
                    raise UsageError(
                        f"The run {run.run} is in the history already, and not of the night {night.night}."
                    )
            _insert(write, "statuses", [_status_row(night.night, one) for one in night.statuses])
        return True

    def add_run(self, run: Run) -> bool:
        """Keep a run that belongs to no night; False when it is there already."""
        with self._transaction() as write:
            return _add_run(write, run, None)

    def nights(self, *, name: str | None = None, since: str | None = None) -> pd.DataFrame:
        """One row a night: night, name, started, seconds, exit_code, folder, machine, git, seed."""
        return self._frame(frames.NIGHTS, {"nights.name": name}, since, "nights.started, nights.night")

    def runs(self, *, part: str | None = None, night: str | None = None) -> pd.DataFrame:
        """One row a run, with the `night` that it belongs to and that night's `name`."""
        return self._frame(frames.RUNS, {"runs.part": part, "runs.night": night}, None, "runs.started, runs.run")

    def results(
        self,
        *,
        part: str | None = None,
        subject: str | None = None,
        name: str | None = None,
        since: str | None = None,
        night: str | None = None,
    ) -> pd.DataFrame:
        """One row a subject and run: its verdict and counts, with night, name, part, label, started, machine, folder.

        subject: a name, or a pattern with `*`.
        """
        return self._by_run(frames.RESULTS, "results", part, subject, name, since, night)

    def failures(
        self,
        *,
        part: str | None = None,
        subject: str | None = None,
        name: str | None = None,
        since: str | None = None,
        night: str | None = None,
    ) -> pd.DataFrame:
        """One row a failing case, the first FAILURES_KEPT of each subject and run."""
        return self._by_run(frames.FAILURES, "failures", part, subject, name, since, night)

    def metrics(
        self,
        *,
        part: str | None = None,
        subject: str | None = None,
        metric: str | None = None,
        name: str | None = None,
        since: str | None = None,
        night: str | None = None,
    ) -> pd.DataFrame:
        """One row a number: night, started, part, label, subject, device, machine, verdict, metric, value."""
        more = {"metrics.metric": metric}
        return self._by_run(frames.METRICS, "metrics", part, subject, name, since, night, more)

    def statuses(self, *, night: str | None = None, name: str | None = None, since: str | None = None) -> pd.DataFrame:
        """One row for each thing that a night's comparison said."""
        where = {"statuses.night": night, "nights.name": name}
        return self._frame(frames.STATUSES, where, since, "nights.started, nights.night, statuses.rowid")

    def _by_run(
        self,
        sql: str,
        table: str,
        part: str | None,
        subject: str | None,
        name: str | None,
        since: str | None,
        night: str | None,
        more: dict[str, str | None] | None = None,
    ) -> pd.DataFrame:
        where = {"runs.part": part, f"{table}.subject": subject, "nights.name": name, "runs.night": night}
        return self._frame(sql, {**where, **(more or {})}, since, f"runs.started, runs.run, {table}.rowid", "runs")

    def _frame(
        self, sql: str, where: dict[str, str | None], since: str | None, order: str, time: str = "nights"
    ) -> pd.DataFrame:
        try:
            return frames.frame(self._connection, sql, where, since=since, order=order, time=f"{time}.started")
        except (sqlite3.Error, pd.errors.DatabaseError) as error:
            raise UsageError(f"Cannot read the history {self.path}: {_reason(error)}.") from error

    def _prepare(self, *, read_only: bool) -> None:
        with self._transaction(begin="BEGIN" if read_only else "BEGIN IMMEDIATE") as write:
            (version,) = write.execute("PRAGMA user_version").fetchone()
            (tables,) = write.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if version == 0 and tables == 0 and not read_only:
                for statement in statements():
                    write.execute(statement)
            elif version > SCHEMA:
                raise UsageError(f"{self.path} is a history of schema {version}; this moecheck reads {SCHEMA}.")
            elif version != SCHEMA:
                raise UsageError(f"{self.path} is no history of moecheck.")

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        connection = self._connection
        try:
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise UsageError(f"Cannot use the history {self.path}: {_reason(error)}.") from error


def _add_run(write: sqlite3.Connection, run: Run, night: str | None) -> bool:
    values = (run.run, night, run.part, run.label, run.started, run.seconds, run.command)
    if not _insert(write, "runs", [(*values, run.machine, run.folder, run.git, run.profile, run.seed)]):
        return False
    results, failures, metrics = [], [], []
    for one in run.results:
        key = (run.run, one.subject)
        counts = (one.judged, one.passed, len(one.failures))
        words = (one.check, one.message, one.diagnosis, one.worst_case, one.reproduce)
        results.append((*key, one.op, one.backend, one.device, one.verdict.value, *counts, *words))
        for failure in one.failures[:FAILURES_KEPT]:
            what = (failure.case, failure.check, failure.verdict.value, failure.message)
            failures.append((*key, one.device, *what))
        metrics += [(*key, one.device, name, float(value)) for name, value in one.metrics.items()]
    _insert(write, "results", results)
    _insert(write, "failures", failures)
    _insert(write, "metrics", metrics)
    return True


def _insert(write: sqlite3.Connection, table: str, rows: Iterable[tuple[object, ...]]) -> bool:
    """Whether all rows were new; a row whose primary key is there already is left as it is."""
    rows = [tuple(_storable(value) for value in row) for row in rows]
    if not rows:
        return True
    marks = ", ".join("?" * len(rows[0]))
    return write.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows).rowcount == len(rows)


def _storable(value: object) -> object:
    """Half a surrogate pair, as names of files may have it, cannot be kept, nor a number above 64 bits."""
    if isinstance(value, int) and abs(value) >> 63:
        return str(value)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _status_row(night: str, one: Status) -> tuple[object, ...]:
    return (night, one.label, one.subject, one.device, one.status, one.check, one.message)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")
