"""The queries of a history as pandas DataFrames."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

import pandas as pd

from moecheck.errors import UsageError

_RUN = "runs.night, nights.name, runs.run, runs.part, runs.label, runs.started, runs.machine"
_OF_RUN = "JOIN runs USING (run) LEFT JOIN nights ON nights.night = runs.night"
NIGHTS = "SELECT * FROM nights"
RUNS = "SELECT runs.*, nights.name FROM runs LEFT JOIN nights ON nights.night = runs.night"
RESULTS = (
    f"SELECT {_RUN}, runs.folder, runs.git, runs.seed, results.subject, op, backend, device, verdict, judged, passed, "
    f'failed, "check", message, diagnosis, worst_case, reproduce FROM results {_OF_RUN}'
)
FAILURES = f'SELECT {_RUN}, failures.subject, device, "case", "check", verdict, message FROM failures {_OF_RUN}'
METRICS = (
    f"SELECT {_RUN}, runs.seed, metrics.subject, device, verdict, metric, value "
    f"FROM metrics JOIN results USING (run, subject, device) {_OF_RUN}"
)
STATUSES = (
    'SELECT statuses.night, nights.name, nights.started, label, subject, device, status, "check", message '
    "FROM statuses JOIN nights USING (night)"
)
_NUMBERS = ("seconds", "value")


def frame(
    connection: sqlite3.Connection,
    sql: str,
    where: Mapping[str, str | None],
    *,
    since: str | None,
    order: str,
    time: str,
) -> pd.DataFrame:
    """The rows of a query.

    where: column -> value that it has, `*` in it for anything; None for no condition. since: ISO 8601, compared with
    the column `time`. `started` is a time in UTC. Raises UsageError for a `since` that is no time.
    """
    conditions, values = [], []
    for column, value in where.items():
        if value is not None:
            pattern = "*" in value
            conditions.append(f"{column} {'GLOB' if pattern else '='} ?")
            values.append(_literal(value) if pattern else value)
    if since is not None:
        conditions.append(f"{time} >= ?")
        values.append(_utc(since))
    text = f"{sql}{' WHERE ' if conditions else ''}{' AND '.join(conditions)} ORDER BY {order}"
    rows = pd.read_sql_query(text, connection, params=values)
    rows["started"] = pd.to_datetime(rows["started"], utc=True, format="ISO8601")
    for name in _NUMBERS:
        if name in rows:
            rows[name] = pd.to_numeric(rows[name])
    return rows


def _literal(pattern: str) -> str:
    """A GLOB in which only `*` means something."""
    return "".join(f"[{letter}]" if letter in "?[" else letter for letter in pattern)


def _utc(text: str) -> str:
    try:
        moment = pd.Timestamp(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no time; give 2026-11-22 or 2026-11-22T03:00:00+00:00, for example.") from error
    moment = moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")
    return str(moment.isoformat(timespec="seconds"))
