"""What one run measured of one subject (a kernel, a model with its candidate, a timed kernel), over many runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from moecheck.bench.entry import Bench
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.report.e2e_record import E2eRecord
from moecheck.report.results import KernelSummary, RunSummary
from moecheck.report.runs import Run

BENCH_VERDICTS = {"timed": Verdict.PASS, "wrong": Verdict.FAIL, "failed": Verdict.ERROR, "skipped": Verdict.SKIP}
KERNEL_METRICS = (
    "max_diff",
    "max_rel_diff",
    "mismatch_ratio",
    "rms_z",
    "rms_z_median",
    "max_z",
    "slope_error",
    "detection_limit",
    "seconds",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """run: name of its folder. values: by the metric's name. machine, profile: empty where not known."""

    run: str
    started: datetime
    part: str
    subject: str
    verdict: Verdict
    op: str = ""
    device: str = ""
    machine: str = ""
    profile: str = ""
    tally: str = ""
    message: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.verdict in FAILURES


def points_of_runs(runs: Iterable[Run]) -> list[Point]:
    """One point for each subject of each run; a kernel that could not run at all has none."""
    return [point for run in runs for point in _READERS[run.part](run)]


def points_of_history(path: Path) -> list[Point]:
    """One point for each result that a history keeps. Raises UsageError when it cannot be read."""
    from moecheck.history import History  # pandas takes half a second

    with History.open(path, read_only=True) as history:
        results = history.results().to_dict("records")
        profiles = dict(history.runs()[["run", "profile"]].itertuples(index=False, name=None))
        values: dict[tuple[Any, ...], dict[str, float]] = {}
        for row in history.metrics().to_dict("records"):
            # In the store NULL is NaN, as in the frame.
            values.setdefault((row["run"], row["subject"], row["device"]), {})[str(row["metric"])] = float(row["value"])
    for numbers in values.values():
        slope, ratio = numbers.get("slope_error", 0.0), numbers.get("slope_z", 0.0)
        if slope and ratio:
            numbers["slope_error_se"] = abs(slope / ratio)
    return [
        Point(
            run=row["run"],
            started=row["started"].to_pydatetime(),
            part=row["part"],
            subject=row["subject"],
            verdict=Verdict(row["verdict"]),
            op=_text(row["op"]),
            device=_text(row["device"]),
            machine=_text(row["machine"]),
            profile=_text(profiles.get(row["run"])),
            tally=f"{row['passed']}/{row['judged']}" if row["part"] == "kernels" else "",
            message=_text(row["message"]),
            values=values.get((row["run"], row["subject"], row["device"]), {}),
        )
        for row in results
    ]


def merged(history: Sequence[Point], runs: Sequence[Point]) -> list[Point]:
    """Points of both, oldest first; those of a run that is in both as its folder has them, on the history's machine.

    A night knows its accelerators, and the folder of a run only the processor.
    """
    machines = {point.run: point.machine for point in history}
    here = [replace(point, machine=machines.get(point.run, point.machine)) for point in runs]
    known = {point.run for point in here}
    return sorted(
        [*(point for point in history if point.run not in known), *here], key=lambda point: (point.started, point.run)
    )


def by_subject(points: Iterable[Point], part: str) -> dict[str, list[Point]]:
    """The points of one part by subject, in the order of names; skips are left out."""
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.part == part and point.verdict is not Verdict.SKIP:
            found.setdefault(point.subject, []).append(point)
    return dict(sorted(found.items()))


def series(points: Sequence[Point]) -> dict[tuple[str, str, str], list[Point]]:
    """By device, machine and profile: only the numbers of one series are compared with each other."""
    found: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        found.setdefault((point.device, point.machine, point.profile), []).append(point)
    return found


def _text(value: object) -> str:
    """A text of a frame, in which NULL is NaN."""
    return value if isinstance(value, str) else ""


def _kernels(run: Run) -> Iterator[Point]:
    assert isinstance(run.content, RunSummary)
    for kernel in run.content.kernels:
        values = {name: value for name in KERNEL_METRICS if (value := getattr(kernel, name)) is not None}
        if kernel.slope_error_se is not None:
            values["slope_error_se"] = kernel.slope_error_se
        yield Point(
            run=run.name,
            started=run.started,
            part=run.part,
            subject=kernel.name,
            verdict=kernel.verdict,
            op=kernel.op,
            device=kernel.device,
            machine=run.machine,
            profile=run.content.profile or "",
            tally=_tally(kernel),
            message=kernel.message,
            values=values,
        )


def _tally(kernel: KernelSummary) -> str:
    return f"{kernel.passed_cases}/{kernel.cases - kernel.vacuous_cases}"


def _e2e(run: Run) -> Iterator[Point]:
    assert isinstance(run.content, E2eRecord)
    record = run.content
    values = {signal.name: signal.value for signal in record.signals if signal.value is not None}
    for square in record.squares:
        values[f"{square.name} of the candidate"] = square.share("candidate")[0]
    verdicts = {"pass": Verdict.PASS, "fail": Verdict.FAIL}
    yield Point(
        run=run.name,
        started=run.started,
        part=run.part,
        subject=record.name,
        verdict=verdicts.get(record.outcome, Verdict.INCONCLUSIVE),
        machine=run.machine,
        message=record.reason,
        values={name: value for name, value in values.items() if not math.isnan(value)},
    )


def _bench(run: Run) -> Iterator[Point]:
    assert isinstance(run.content, Bench)
    for entry in run.content.entries:
        known = {"ratio": entry.ratio, "roofline_share": entry.roofline_share}
        known["median"] = entry.timing.median if entry.timing else None
        yield Point(
            run=run.name,
            started=run.started,
            part=run.part,
            subject=f"{entry.kernel} · {entry.op} · {entry.model} · {entry.weights} · {entry.tokens}",
            verdict=BENCH_VERDICTS.get(entry.status, Verdict.ERROR),
            op=entry.op,
            device=entry.device,
            machine=run.machine,
            message=entry.reason,
            values={name: value for name, value in known.items() if value is not None},
        )


def _none(run: Run) -> Iterator[Point]:
    return iter(())


_READERS = {"kernels": _kernels, "e2e": _e2e, "bench": _bench, "mutants": _none}
