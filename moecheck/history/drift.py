"""Slow changes of what nights measure, by rank tests: no distribution is assumed, only that nights are exchangeable.

A series is one metric of one subject on one device and machine, one value a day, of nights on which the subject passed.
Two tests of scipy look at it, and their p values are joined by Bonferroni's rule:

* a step: Mann and Whitney's U of the last RECENT values against the up to REFERENCE before them (exact without ties);
* a trend: Kendall's tau of the last REFERENCE + RECENT values with time.

Over all series of a night Benjamini and Hochberg's rule keeps the rate of false discoveries at FALSE_DISCOVERIES, so
that a night on which nothing drifts is accused that often at most. What is significant must be large enough to matter
as well: the medians differ by more than the reference's interquartile range, and by the metric's own least change.
tools/measure_drift.py measures false alarms and detection; reports/history has what it found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from moecheck.checks.finding import Verdict
from moecheck.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    Float64 = npt.NDArray[np.float64]

RECENT, REFERENCE = 5, 60  # nights
LEAST = 8  # values before the recent ones, below which nothing is tested
FALSE_DISCOVERIES = 0.002
KEY = ["label", "part", "subject", "device", "machine", "metric"]

Worse = Literal["up", "down", "either"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which direction of a metric is bad news, and the least relative change of its median that matters."""

    worse: Worse
    least: float = 0.0


# The metrics that are watched. Times in seconds are not: they tell of the machine's neighbours; ratios are.
RULES = {
    ("kernels", "max_diff"): Rule(worse="up", least=0.1),
    ("kernels", "rms_z_median"): Rule(worse="up", least=0.01),
    ("kernels", "slope_error"): Rule(worse="either"),
    ("bench", "ratio"): Rule(worse="down", least=0.05),
    ("e2e", "component attribution"): Rule(worse="up", least=0.1),
    ("e2e", "teacher-forced divergence"): Rule(worse="up", least=0.1),
    ("e2e", "router agreement"): Rule(worse="down"),
    ("e2e", "identical texts"): Rule(worse="down"),
    ("e2e", "accuracy"): Rule(worse="down"),
    ("mutants", "score"): Rule(worse="down"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One series and what the tests say of it.

    nights: values that were looked at. before, now: medians of the reference and of the recent values. p: of both tests
    together. adjusted: Benjamini and Hochberg's, over all series of the night. drifted: significant, and large enough.
    changed: the reference is one number again and again, and the last value is another, worse one.
    """

    label: str
    part: str
    subject: str
    device: str
    machine: str
    metric: str
    nights: int
    before: float
    now: float
    p_step: float
    p_trend: float
    p: float
    adjusted: float = 1.0
    drifted: bool = False
    changed: bool = False

    @property
    def words(self) -> str:
        """One sentence."""
        moved = f"{self.metric} went from {self.before:.4g} to {self.now:.4g}"
        if self.changed and not self.drifted:
            return f"{moved} after {self.nights - 1} nights of the same number"
        return f"{moved} in the last {RECENT} of {self.nights} nights (p = {self.p:.1g}, adjusted {self.adjusted:.1g})"


def drifts(
    metrics: pd.DataFrame, *, night: str | None = None, false_discoveries: float = FALSE_DISCOVERIES
) -> list[Drift]:
    """Every series that is long enough, the most significant first.

    metrics: as History.metrics gives it, of nights of one name. night: the series must end with a value of it, by
    default each may end when it does. Raises UsageError without scipy.
    """
    found = []
    for key, values in _series(metrics, night):
        rule = RULES[key[1], key[5]]
        one = _tested(key, values, rule)
        if one is not None:
            found.append((one, _spread(values) if len(values) > RECENT else 0.0, rule))
    if not found:
        return []
    adjusted = _scipy().false_discovery_control([one.p for one, _, _ in found])
    judged = [
        _judged(one, spread, rule, float(p), false_discoveries)
        for (one, spread, rule), p in zip(found, adjusted, strict=True)
    ]
    return sorted(judged, key=lambda one: (not one.drifted, one.p))


def frame_of(found: Iterable[Drift]) -> pd.DataFrame:
    """The same as a table."""
    names = list(Drift.__dataclass_fields__)
    return pd.DataFrame([[getattr(one, name) for name in names] for one in found], columns=names)


def _series(metrics: pd.DataFrame, night: str | None) -> Iterable[tuple[tuple[str, ...], Float64]]:
    watched = [f"{part}/{metric}" for part, metric in RULES]
    rows = metrics[(metrics["verdict"] == Verdict.PASS.value) & metrics["value"].notna() & metrics["night"].notna()]
    rows = rows[(rows["part"] + "/" + rows["metric"]).isin(watched)]
    if rows.empty:
        return
    rows = rows.assign(day=rows["started"].dt.floor("D")).sort_values(["started", "run"], kind="stable")
    # Two nights of one day have one seed, and so the same numbers.
    rows = rows.drop_duplicates([*KEY, "day"], keep="last")
    if night is not None:
        last = rows.drop_duplicates(KEY, keep="last")
        rows = rows.merge(last.loc[last["night"] == night, KEY], on=KEY)
    for key, values in rows.groupby(KEY, sort=True)["value"]:
        yield tuple(map(str, key)), values.to_numpy(np.float64)


def _tested(key: tuple[str, ...], values: Float64, rule: Rule) -> Drift | None:
    """None for a series that is too short to say anything."""
    values = values[-(RECENT + REFERENCE) :]
    constant = len(values) > LEAST and bool(np.all(values[:-1] == values[0]))
    if len(values) < LEAST + RECENT and not constant:
        return None
    recent = 1 if constant else RECENT
    before, now = values[:-recent], values[-recent:]
    p_step, p_trend = (1.0, 1.0) if constant else _p_values(before, now, rule.worse)
    label, part, subject, device, machine, metric = key
    one = Drift(
        label=label,
        part=part,
        subject=subject,
        device=device,
        machine=machine,
        metric=metric,
        nights=len(values),
        before=float(np.median(before)),
        now=float(np.median(now)),
        p_step=p_step,
        p_trend=p_trend,
        p=min(1.0, 2 * min(p_step, p_trend)),
    )
    return replace(one, changed=constant and _matters(one, 0.0, rule))


def _p_values(before: Float64, now: Float64, worse: Worse) -> tuple[float, float]:
    """Of the step and of the trend."""
    stats = _scipy()
    step, trend = _ALTERNATIVES[worse]
    values = np.concatenate([before, now])
    return (
        float(stats.mannwhitneyu(now, before, alternative=step).pvalue),
        float(stats.kendalltau(np.arange(len(values)), values, alternative=trend).pvalue),
    )


def _judged(one: Drift, spread: float, rule: Rule, adjusted: float, most: float) -> Drift:
    return replace(one, adjusted=adjusted, drifted=adjusted <= most and _matters(one, spread, rule))


def _matters(one: Drift, spread: float, rule: Rule) -> bool:
    """Whether the medians differ, in the bad direction, by more than the spread and the least relative change."""
    change = one.now - one.before
    size = {"up": change, "down": -change, "either": abs(change)}[rule.worse]
    return size > max(spread, rule.least * abs(one.before))


def _spread(values: Float64) -> float:
    """The interquartile range of the reference."""
    low, high = np.quantile(values[-(RECENT + REFERENCE) : -RECENT], [0.25, 0.75])
    return float(high - low)


def _scipy() -> Any:
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        raise UsageError("Drift is tested with scipy: pip install 'moecheck[nightly]'.") from error
    return stats


# For mannwhitneyu(recent, reference) and kendalltau(time, values).
_ALTERNATIVES = {"up": ("greater", "greater"), "down": ("less", "less"), "either": ("two-sided", "two-sided")}
