"""Signal 5: does the candidate still solve the task; the least sensitive one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from scipy import stats

from moecheck.evals.statistics.clusters import clustered_standard_error, sign_flip_test
from moecheck.evals.statistics.interval import tango_interval
from moecheck.evals.statistics.paired import (
    PairedTable,
    mcnemar_mid_p,
    mcnemar_one_sided,
    mcnemar_two_sided,
    more_flips_than,
)
from moecheck.evals.statistics.power import minimal_detectable_drop

from .limits import ALPHA, LEVEL
from .signal import Outcome, Signal

NAME = "accuracy"
LEAST_ACCURACY = 5.0  # of the baseline, in margins: below it there is too little that could be lost


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyNumbers:
    """table: right and wrong in both arms. p: McNemar's exact one-sided p, mid_p and two_sided beside it.

    clustered_p: of the sign-flip test over clusters, None without them or where so few changed that it cannot reach
    ALPHA. interval: Tango's at LEVEL, wider where clusters make it so. standard_error: paired, clustered where that is
    more. detectable: least drop found with chance .8, None where n is too small. flips_p: Fisher's p of "no more flips
    than the baseline has against itself", None where that was not measured.
    """

    table: PairedTable
    p: float
    mid_p: float
    two_sided: float
    clustered_p: float | None
    interval: tuple[float, float]
    standard_error: float
    detectable: float | None
    flips_p: float | None


def numbers_of(
    baseline: Sequence[bool],
    candidate: Sequence[bool],
    *,
    clusters: Sequence[Hashable] | None = None,
    null: PairedTable | None = None,
) -> AccuracyNumbers:
    """Of right answers, question by question; null: the baseline against itself or a legal variant."""
    table = PairedTable.of(baseline, candidate)
    differences = [int(two) - int(one) for one, two in zip(baseline, candidate, strict=True)]
    flip_rate = (2 * min(table.lost, table.gained) + 1) / (table.n + 2)  # what goes both ways, and is no drop
    clustered_p, error = None, table.standard_error
    if clusters is not None:
        error = max(error, clustered_standard_error(differences, clusters))
        changed = {cluster for cluster, change in zip(clusters, differences, strict=True) if change}
        clustered_p = sign_flip_test(differences, clusters) if 2.0 ** -len(changed) < ALPHA else None
    lower, upper = tango_interval(table, LEVEL)
    reach = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    return AccuracyNumbers(
        table=table,
        p=mcnemar_one_sided(table),
        mid_p=mcnemar_mid_p(table),
        two_sided=mcnemar_two_sided(table),
        clustered_p=clustered_p,
        interval=(min(lower, table.difference - reach), max(upper, table.difference + reach)),
        standard_error=error,
        detectable=minimal_detectable_drop(table.n, flip_rate, alpha=ALPHA),
        flips_p=None if null is None else more_flips_than(table.flips, table.n, null.flips, null.n),
    )


def accuracy(numbers: AccuracyNumbers, *, margin: float, stopped: str | None = None) -> Signal:
    """The signal. stopped: what an early stop found, `fail` or `pass`, which then decides."""
    table, lower = numbers.table, numbers.interval[0]
    solved = (table.both + table.lost) / table.n
    words = (
        f"{100 * solved:.2f} % to {100 * (solved + table.difference):.2f} %, {table.lost} lost, {table.gained} gained"
    )
    least = LEAST_ACCURACY * margin
    p = numbers.p if numbers.clustered_p is None else max(numbers.p, numbers.clustered_p)
    if p < ALPHA or stopped == "fail":
        outcome, words = Outcome.FAIL, f"{words}: p = {p:.2g}"
    elif solved < least:
        outcome = Outcome.INCONCLUSIVE
        words = f"{words}; the baseline must solve {100 * least:g} % for a drop of {100 * margin:g} points to show"
    elif lower > -margin or stopped == "pass":
        outcome, words = Outcome.PASS, f"{words}: not worse by {100 * margin:g} points (90 % bound {100 * lower:+.2f})"
    else:
        outcome = Outcome.INCONCLUSIVE
        words = f"{words}: the 90 % bound {100 * lower:+.2f} is below -{100 * margin:g} points, but p = {p:.2g}"
    return Signal(
        name=NAME,
        outcome=outcome,
        message=f"{words}; {detectable_words(numbers)}",
        value=table.difference,
        limit=-margin,
        numbers=_flat(numbers),
    )


def detectable_words(numbers: AccuracyNumbers) -> str:
    """What the run could have seen."""
    if numbers.detectable is None:
        return f"of {numbers.table.n} questions no drop would be found 4 times of 5"
    return f"a drop of {100 * numbers.detectable:.1f} points would have been found 4 times of 5"


def _flat(numbers: AccuracyNumbers) -> dict[str, float]:
    table = numbers.table
    known = {
        "n": float(table.n),
        "both": float(table.both),
        "lost": float(table.lost),
        "gained": float(table.gained),
        "neither": float(table.neither),
        "mcnemar_p": numbers.p,
        "mcnemar_mid_p": numbers.mid_p,
        "mcnemar_two_sided_p": numbers.two_sided,
        "sign_flip_p": numbers.clustered_p,
        "tango_lower": numbers.interval[0],
        "tango_upper": numbers.interval[1],
        "standard_error": numbers.standard_error,
        "minimal_detectable_drop": numbers.detectable,
        "more_flips_p": numbers.flips_p,
    }
    return {name: value for name, value in known.items() if value is not None}
