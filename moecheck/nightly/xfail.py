"""xfail.toml: the findings that the adopter knows of, each with a link to its issue and a day on which it runs out.

A night never repeats a case until it passes. What fails and is known is listed here: it does not turn the night red as
long as it fails, and does when it no longer fails, so that the entry goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from moecheck.checks.finding import Verdict
from moecheck.errors import UsageError, check_known
from moecheck.history.records import Failure, Result, Run
from moecheck.nightly.toml_text import read_toml

LONGEST = timedelta(days=366)  # an entry without an end is a switched-off check
UNDECIDED = (Verdict.INCONCLUSIVE, Verdict.VACUOUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One known finding. subject, check, case, device, label: patterns with `*`, as fnmatch has them.

    sometimes: it is known not to fail every night, so that a pass says nothing. number: its place in the file, from 1.
    """

    subject: str
    issue: str
    expires: date
    check: str = "*"
    case: str = "*"
    device: str = "*"
    label: str = "*"
    sometimes: bool = False
    number: int = 1

    @property
    def words(self) -> str:
        more = [
            f"{name} {value}" for name in ("check", "case", "device", "label") if (value := getattr(self, name)) != "*"
        ]
        return ", ".join([f"entry {self.number}: {self.subject}", *more])

    def is_about(self, run: Run, result: Result) -> bool:
        return (
            fnmatchcase(result.subject, self.subject)
            and fnmatchcase(result.device, self.device)
            and fnmatchcase(run.label, self.label)
        )

    def matches(self, run: Run, result: Result, failure: Failure) -> bool:
        return (
            self.is_about(run, result)
            and fnmatchcase(failure.check, self.check)
            and fnmatchcase(failure.case, self.case)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What one entry met in a night.

    failed: findings that it covers. passed: cases that it is about and that passed. skipped: why its subjects did not
    run, None where some did or none is known.
    """

    entry: Entry
    expired: bool
    failed: int
    passed: int
    skipped: str | None

    @property
    def status(self) -> str:
        if self.expired:
            return "expired"
        if self.failed:
            return "known"
        if self.passed:
            return "known, passed tonight" if self.entry.sometimes else "unexpected pass"
        return "not run" if self.skipped is not None else "matches nothing"


def units(result: Result) -> tuple[Failure, ...]:
    """What of a result an entry may cover: its failures, or that it is undecided."""
    if result.failures:
        return result.failures
    if result.failed or result.verdict in UNDECIDED:
        return (
            Failure(check=result.verdict.value, case=result.worst_case, verdict=result.verdict, message=result.message),
        )
    return ()


def read_xfail(path: Path | None) -> tuple[Entry, ...]:
    """The entries of a file; none without one. Raises UsageError for an entry without issue or expiry."""
    if path is None:
        return ()
    _, data = read_toml(path)
    try:
        for key in data:
            check_known("key", key, ["xfail"])
        tables = data.get("xfail", [])
        if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
            raise UsageError("Known findings are [[xfail]] tables.")
        return tuple(_entry(number, table) for number, table in enumerate(tables, start=1))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def tally(entry: Entry, runs: Iterable[Run], drift: Iterable[tuple[Run, Result, Failure | None]], today: date) -> Tally:
    """Hold an entry against a night. drift: each watched series, with its failure where it drifts."""
    failed = passed = 0
    skipped = None
    for run in runs:
        for result in run.results:
            if not entry.is_about(run, result):
                continue
            if not result.was_judged:
                skipped = result.message or "skipped"
                continue
            failed += sum(entry.matches(run, result, failure) for failure in units(result))
            passed += sum(fnmatchcase(case, entry.case) for case in result.passing)
            passed += not result.passing and result.verdict is Verdict.PASS and entry.case == "*"
    if entry.check.startswith("drift"):
        passed = 0
    for run, result, failure in drift:
        if failure is not None:
            failed += entry.matches(run, result, failure)
        elif entry.check.startswith("drift"):
            passed += entry.is_about(run, result)
    return Tally(
        entry=entry,
        expired=entry.expires < today,
        failed=failed,
        passed=passed,
        skipped=skipped if not passed else None,
    )


def _entry(number: int, table: dict[str, Any]) -> Entry:
    where = f"[[xfail]] {number}"
    texts = ("subject", "issue", "check", "case", "device", "label")
    for key in table:
        check_known(f"key of {where}", key, [*texts, "kernel", "expires", "sometimes", "reason"])
    if ("kernel" in table) == ("subject" in table):
        raise UsageError(f"{where} needs a kernel or a subject.")
    values = {("subject" if key == "kernel" else key): value for key, value in table.items() if key != "reason"}
    for key, value in values.items():
        if key in texts and not (isinstance(value, str) and value):
            raise UsageError(f"{key} of {where} must be a text, not {value!r}.")
    issue, expires = values.get("issue", ""), values.get("expires")
    if not issue.startswith(("https://", "http://")):
        raise UsageError(f'{where} needs the link of its issue: issue = "https://...".')
    if isinstance(expires, datetime) or not isinstance(expires, date):
        raise UsageError(f"{where} needs the day on which it runs out: expires = 2027-01-31.")
    if expires > datetime.now(UTC).date() + LONGEST:
        raise UsageError(f"{where} runs out on {expires}, more than {LONGEST.days} days from now.")
    if not isinstance(values.get("sometimes", False), bool):
        raise UsageError(f"sometimes of {where} must be true or false.")
    return Entry(number=number, **values)
