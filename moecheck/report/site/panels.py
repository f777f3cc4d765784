"""Which numbers of a subject are drawn over its runs, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from moecheck.checks.finding import Verdict
from moecheck.report.limits import sees_text
from moecheck.report.site.points import Point, series
from moecheck.report.text import count
from moecheck.report.trend_plots import Panel

# Metric -> title, and whether its scale is logarithmic.
KERNELS = {
    "max_diff": ("max diff", True),
    "mismatch_ratio": ("mismatch ratio", False),
    "max_z": ("worst z", False),
    "rms_z_median": ("rms z, median over the cases", False),
    "slope_error": ("slope error", False),
    "detection_limit": ("smallest factor that would show, less 1", True),
    "seconds": ("seconds in the kernel", False),
}
BENCH = {
    "ratio": ("ratio to the baseline (above 1 is faster)", False),
    "median": ("median, seconds", False),
    "roofline_share": ("share of the roofline", False),
}
E2E_LOG = ("teacher-forced divergence",)
NEWEST = 90  # runs of a series that are drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The runs of one device, machine and profile. words: which they are. points: oldest first. panels: to be drawn."""

    words: str
    points: tuple[Point, ...]
    panels: tuple[Panel, ...]

    @property
    def times(self) -> list[datetime]:
        return [point.started for point in self.points]

    @property
    def failed(self) -> list[bool]:
        return [point.failed for point in self.points]


def trends(points: Sequence[Point], part: str) -> list[Trend]:
    """The trends of one subject, the series with the newest run first."""
    found = []
    for key, members in series(points).items():
        newest = tuple(members[-NEWEST:])
        words = " · ".join(word for word in key if word) or "unknown machine"
        found.append(Trend(words=words, points=newest, panels=_panels(newest, part)))
    return sorted(found, key=lambda trend: trend.points[-1].started, reverse=True)


def trend_words(trend: Trend) -> str:
    """`cpu · Intel Xeon · nightly: 30 runs, 2 failed`."""
    bad = sum(trend.failed)
    return f"{trend.words}: {count(len(trend.points), 'run')}" + (f", {bad} failed" if bad else "")


def sees_point(point: Point) -> str:
    """The smallest factor that one run's passing cases would have shown, for a table."""
    return sees_text(point.op, point.values.get("detection_limit"), passed=point.verdict is Verdict.PASS)


def _panels(points: Sequence[Point], part: str) -> tuple[Panel, ...]:
    if part == "e2e":
        names = dict.fromkeys(name for point in points for name in point.values)
        chosen = {name: (name, name in E2E_LOG) for name in names}
    else:
        chosen = KERNELS if part == "kernels" else BENCH
    return tuple(
        Panel(
            title=title,
            values=tuple(point.values.get(name) for point in points),
            log=log,
            band=tuple(point.values.get(f"{name}_se") for point in points) if name == "slope_error" else None,
        )
        for name, (title, log) in chosen.items()
        if any(name in point.values for point in points)
    )
