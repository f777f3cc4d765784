"""What is new in a night: its runs against the nights before, and against the findings that are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import pandas as pd

from moecheck.checks.finding import FAILURES, Verdict
from moecheck.history.drift import Drift
from moecheck.history.records import Failure, Result, Run, Status
from moecheck.nightly.xfail import UNDECIDED, Entry, Tally, tally, units

# Status -> exit code of a night that has it; the first that occurs decides.
CODES = {
    "regression": 1,
    "new failure": 1,
    "still failing": 1,
    "drift": 1,
    "unexpected pass": 1,
    "broken": 3,
    "bad options": 2,
    "undecided": 4,
    "lost": 4,
    "part skipped": 4,
}
WORDS = {
    "regression": "it passed before",
    "new failure": "never judged before",
    "still failing": "as in the night before, and not listed as known",
    "drift": "its numbers move",
    "unexpected pass": "listed as known, but it passes: remove the entry",
    "lost": "judged before, and not tonight",
}
Key = tuple[str, str, str]  # label, subject, device


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What earlier nights said.

    night: the latest, None if there is none. last: the latest verdict of each subject that was judged. listed: subjects
    whose latest failures were all known. judged: those judged in the latest night that ran their part.
    """

    night: str | None
    last: Mapping[Key, Verdict]
    listed: frozenset[Key]
    judged: frozenset[Key]

    @classmethod
    def of(cls, results: pd.DataFrame, statuses: pd.DataFrame, *, night: str, started: str) -> Before:
        """From the history of nights of one name; `night` itself and later ones do not count."""
        moment = pd.Timestamp(started)
        results = results[(results["started"] < moment) & (results["night"] != night) & results["night"].notna()]
        if results.empty:
            return cls(night=None, last={}, listed=frozenset(), judged=frozenset())
        judged = results[results["verdict"] != Verdict.SKIP.value]
        latest = judged.drop_duplicates(["label", "subject", "device"], keep="last")
        keys = list(zip(latest["label"], latest["subject"], latest["device"], strict=True))
        of_known = statuses[statuses["status"] == "known"]
        known = set(zip(of_known["night"], of_known["label"], of_known["subject"], of_known["device"], strict=True))
        nights = results.groupby("label")["night"].last()
        in_last = latest["night"] == latest["label"].map(nights)
        return cls(
            night=str(results["night"].iloc[-1]),
            last={key: Verdict(verdict) for key, verdict in zip(keys, latest["verdict"], strict=True)},
            listed=frozenset(key for key, of in zip(keys, latest["night"], strict=True) if (of, *key) in known),
            judged=frozenset(key for key, yes in zip(keys, in_last, strict=True) if yes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """statuses: everything notable, the worst first. tallies: of the known findings."""

    statuses: tuple[Status, ...]
    tallies: tuple[Tally, ...]


def compare(
    runs: Sequence[Run], before: Before, entries: Sequence[Entry], drifts: Sequence[Drift], *, today: date
) -> Comparison:
    """Judge a night. drifts: of all series that were tested."""
    valid = [entry for entry in entries if entry.expires >= today]
    series = list(_series(runs, drifts))
    tallies = tuple(
        tally(entry, runs, [(run, one, failure) for run, one, failure, _ in series], today) for entry in entries
    )
    statuses = [status for run in runs for result in run.results for status in _judge(run, result, before, valid)]
    statuses += _lost(runs, before)
    for run, result, failure, drift in series:
        if failure is not None:
            known = any(entry.matches(run, result, failure) for entry in valid)
            statuses.append(_status(run, result, "known" if known else "drift", failure.check, failure.message))
        elif drift.changed:
            statuses.append(_status(run, result, "changed", f"drift:{drift.metric}", drift.words))
    statuses += [_of_entry(one) for one in tallies if one.status != "known"]
    return Comparison(statuses=tuple(sorted(statuses, key=_order)), tallies=tallies)


def exit_code(statuses: Sequence[Status]) -> int:
    """0 nothing new, 1 something fails that is not known, 3 or 2 a part broke, 4 something is undecided."""
    found = {status.status for status in statuses}
    return next((code for status, code in CODES.items() if status in found), 0)


def _judge(run: Run, result: Result, before: Before, entries: Sequence[Entry]) -> list[Status]:
    """At most one status of a result, or two where only some of its failures are known."""
    key = (run.label, result.subject, result.device)
    last = before.last.get(key)
    found = units(result)
    fresh = [one for one in found if not any(entry.matches(run, result, one) for entry in entries)]
    statuses = []
    if len(fresh) < len(found):
        words = f"{len(found) - len(fresh)} of {len(found)} findings are known; {result.message}"
        statuses.append(_status(run, result, "known", _checks(set(found) - set(fresh)), words))
    if not fresh:
        if not found and result.verdict is Verdict.PASS and last in FAILURES and not result.covered:
            statuses.append(_status(run, result, "fixed", "", "it failed before, and passes"))
        return statuses
    if result.verdict in UNDECIDED:
        return [*statuses, _status(run, result, "undecided", _checks(fresh), result.message)]
    if result.covered and last is not Verdict.PASS:
        return statuses  # the bar of all together decides
    news = "new failure" if last is None else "regression"
    if last in FAILURES and key not in before.listed:
        news = "still failing"
    return [*statuses, _status(run, result, news, _checks(fresh), _told(result, fresh))]


def _lost(runs: Sequence[Run], before: Before) -> list[Status]:
    """Subjects that the latest night judged and this one did not: nobody looks at them any more."""
    judged = {(run.label, one.subject, one.device) for run in runs for one in run.results if one.was_judged}
    reasons = {(run.label, one.subject): one.message for run in runs for one in run.results if not one.was_judged}
    labels = {run.label for run in runs}
    return [
        Status(
            label=label,
            subject=subject,
            device=device,
            status="lost",
            message=reasons.get((label, subject), "") or "it is no longer among the subjects of this run",
        )
        for label, subject, device in sorted(before.judged - judged)
        if label in labels
    ]


def _series(runs: Sequence[Run], drifts: Sequence[Drift]) -> Iterator[tuple[Run, Result, Failure | None, Drift]]:
    """Each tested series with the result that it ends with, and its failure where it drifts."""
    results = {(run.label, one.subject, one.device): (run, one) for run in runs for one in run.results}
    for drift in drifts:
        run_and_result = results.get((drift.label, drift.subject, drift.device))
        if run_and_result is not None:
            failure = Failure(check=f"drift:{drift.metric}", message=drift.words) if drift.drifted else None
            yield (*run_and_result, failure, drift)


def _of_entry(one: Tally) -> Status:
    entry = one.entry
    words = {
        "unexpected pass": f"{one.passed} passed and none failed: remove the entry; {entry.issue}",
        "known, passed tonight": f"it fails only sometimes, and not tonight; {entry.issue}",
        "expired": f"it ran out on {entry.expires} and covers nothing any more; {entry.issue}",
        "not run": f"its subjects were not judged: {one.skipped}",
        "matches nothing": "no subject, device and case of this night is like that: is it a slip of the pen?",
    }[one.status]
    return Status(
        label="xfail",
        subject=entry.subject,
        device="",
        status=one.status,
        check=entry.check,
        message=f"{entry.words}: {words}",
    )


def _status(run: Run, result: Result, status: str, check: str, message: str) -> Status:
    return Status(
        label=run.label, subject=result.subject, device=result.device, status=status, check=check, message=message
    )


def _told(result: Result, fresh: Sequence[Failure]) -> str:
    """What is wrong, of how many cases, and the line that shows it again."""
    cases = f"{len(fresh)} of {result.judged} cases: " if result.judged > 1 and not result.covered else ""
    parts = [f"{cases}{fresh[0].message or result.message}", result.diagnosis, result.reproduce]
    return " | ".join(part for part in parts if part)


def _checks(failures: Iterable[Failure]) -> str:
    return ", ".join(sorted({one.check for one in failures}))


def _order(status: Status) -> tuple[int, str, str]:
    return (list(ORDER).index(status.status), status.label, status.subject)


ORDER = (*CODES, "changed", "expired", "matches nothing", "known", "known, passed tonight", "not run", "fixed")
