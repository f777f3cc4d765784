"""A whole night: its parts one after another, then the comparison, then the history."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import pandas as pd

from moecheck.errors import UsageError
from moecheck.history.drift import Drift, drifts
from moecheck.history.records import Night, Run, Status
from moecheck.history.store import History
from moecheck.nightly.compare import Before, Comparison, compare, exit_code
from moecheck.nightly.config import Config
from moecheck.nightly.folder import NightFolder
from moecheck.nightly.machine import machine
from moecheck.nightly.parts import Done, read_part, run_part, statuses_of, words_of
from moecheck.nightly.xfail import Entry, Tally, read_xfail
from moecheck.report.environment import git_commit

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NightResult:
    """What a night found. before: the night that it was compared with, None for the first of its name.

    series: how many were tested for drift. untested: why none were, None where they were. nights: of this name in the
    history, this one included.
    """

    night: Night
    parts: tuple[Done, ...]
    tallies: tuple[Tally, ...]
    before: str | None
    series: int
    untested: str | None
    nights: int

    @property
    def exit_code(self) -> int:
        return self.night.exit_code

    def of(self, *statuses: str) -> list[Status]:
        """Those of these kinds, in order."""
        return [one for one in self.night.statuses if one.status in statuses]

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the runs: their folders have them."""
        return {
            "schema": 1,
            **{name: getattr(self.night, name) for name in _OF_NIGHT},
            "compared_with": self.before,
            "nights": self.nights,
            "parts": [asdict(part) for part in self.parts],
            "statuses": [asdict(one) for one in self.night.statuses],
            "known": [
                {**asdict(one.entry), "status": one.status, "failed": one.failed, "passed": one.passed}
                for one in self.tallies
            ],
            "drift": {"series": self.series, "untested": self.untested},
        }


def run_night(config: Config, folder: NightFolder, say: Say) -> NightResult:
    """Run every part that is not done yet, and compare. Raises UsageError for a broken xfail file before anything."""
    entries = read_xfail(config.xfail)
    History.open(config.history).close()  # a history that cannot be written is known now, not in the morning
    start, here = time.monotonic(), machine()
    done, runs, statuses = [], [], []
    for part in config.parts:
        say(f"{part.label}: moecheck {' '.join(words_of(part, seed=folder.seed))}")
        one = run_part(part, folder.path, seed=folder.seed)
        run = read_part(part, one, folder.path, machine=here)
        done.append(one)
        runs += [] if run is None else [run]
        statuses += statuses_of(part, one, run)
        say(f"{part.label}: {_ended(one)}")
    with History.open(config.history) as history:
        compared = _compared(config, folder, history, runs, entries)
        every = (*statuses, *compared.comparison.statuses)
        night = Night(
            night=folder.path.name,
            name=config.name,
            started=folder.started,
            seconds=max(time.monotonic() - start, sum(one.seconds for one in done)),
            exit_code=exit_code(every),
            folder=str(folder.path),
            machine=here,
            git=git_commit(config.out.parent if config.out.parent.is_dir() else None),
            seed=folder.seed,
            runs=tuple(runs),
            statuses=every,
        )
        history.add(night)
        nights = len(history.nights(name=config.name))
    return NightResult(
        night=night,
        parts=tuple(done),
        tallies=compared.comparison.tallies,
        before=compared.before,
        series=compared.series,
        untested=compared.untested,
        nights=nights,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    comparison: Comparison
    before: str | None
    series: int
    untested: str | None


def _compared(
    config: Config, folder: NightFolder, history: History, runs: Sequence[Run], entries: Sequence[Entry]
) -> _Compared:
    night = folder.path.name
    before = Before.of(
        history.results(name=config.name), history.statuses(name=config.name), night=night, started=folder.started
    )
    found: list[Drift] = []
    untested = None if config.drift else "drift = false"
    if config.drift:
        try:
            found = drifts(_with_tonight(history.metrics(name=config.name), runs, night), night=night)
        except UsageError as error:  # without scipy
            untested = str(error)
    comparison = compare(runs, before, entries, found, today=date.fromisoformat(folder.started[:10]))
    return _Compared(comparison=comparison, before=before.night, series=len(found), untested=untested)


def _with_tonight(metrics: pd.DataFrame, runs: Sequence[Run], night: str) -> pd.DataFrame:
    """The history's metrics and tonight's, which are not kept yet; those of a night that goes on are not doubled."""
    rows = [
        {
            "night": night,
            "run": run.run,
            "part": run.part,
            "label": run.label,
            "started": pd.Timestamp(run.started),
            "machine": run.machine,
            "subject": result.subject,
            "device": result.device,
            "verdict": result.verdict.value,
            "metric": metric,
            "value": float(value),
        }
        for run in runs
        for result in run.results
        for metric, value in result.metrics.items()
    ]
    if not rows:
        return metrics
    earlier = metrics[metrics["night"] != night]
    return pd.concat([earlier, pd.DataFrame(rows)], ignore_index=True) if len(earlier) else pd.DataFrame(rows)


def _ended(done: Done) -> str:
    if done.status == "ran":
        return f"exit code {done.exit_code} after {done.seconds:.0f} s, {done.folder or done.log}"
    return f"{done.status}: {done.reason}"


_OF_NIGHT = ("night", "name", "started", "seconds", "exit_code", "folder", "machine", "git", "seed")
