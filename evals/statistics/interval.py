"""Tango's score interval of a difference of paired proportions.

Source: T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
design, Statistics in Medicine 17 (1998) 891-908. Valid without a single flip, where it is -z^2 / (n + z^2) at the left.
"""

from __future__ import annotations

import math

from scipy import optimize, stats

from moecheck.errors import HarnessError

from .paired import PairedTable


def tango_interval(table: PairedTable, level: float = 0.90) -> tuple[float, float]:
    """Lower and upper bound of accuracy(candidate) - accuracy(baseline) at a two-sided `level`.

    The set of d with |score(d)| <= z. Raises HarnessError without questions or for a level outside (0, 1).
    """
    if table.n == 0 or not 0 < level < 1:
        raise HarnessError(f"an interval needs questions and a level inside (0, 1), not n={table.n}, level={level}.")
    z = float(stats.norm.ppf((1 + level) / 2))
    seen, edge = table.difference, 1 - 1e-12
    lower = -1.0 if score(table, -edge) <= z else _root(table, z, -edge, seen)
    upper = 1.0 if score(table, edge) >= -z else _root(table, -z, seen, edge)
    return lower, upper


def score(table: PairedTable, d: float) -> float:
    """The score statistic of the hypothesis that the difference is d; about normal under it, falling in d.

    (gained - lost - n d) / sqrt(n (2 q + d (1 - d))), q the most likely P(lost) if the difference is d.
    """
    n, gained, lost = table.n, table.gained, table.lost
    b = (2 * n - gained + lost) * d - gained - lost
    q = (math.sqrt(max(b * b + 8 * n * lost * d * (1 - d), 0.0)) - b) / (4 * n)
    variance = n * (2 * q + d * (1 - d))
    numerator = gained - lost - n * d
    if variance <= 0:  # d is what was seen without flips, or at an end of its range
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def _root(table: PairedTable, z: float, low: float, high: float) -> float:
    """The d in [low, high] where the score is z."""
    if score(table, low) == z:
        return low
    found = optimize.brentq(lambda d: max(min(score(table, d), 1e9), -1e9) - z, low, high, xtol=1e-12)
    return float(found)
