"""What a paired run could have seen: the power of McNemar's exact test, and the least drop that it finds."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

ALPHA, POWER = 0.01, 0.80
RESOLUTION = 1e-6  # of a drop that is searched for


def mcnemar_power(n: int, drop: float, flip_rate: float, *, alpha: float = ALPHA) -> float:
    """Chance that the exact one-sided test rejects at `alpha` over n questions.

    flip_rate: share of questions that flip without any drop, half of them each way. drop: share of questions that the
    candidate loses beyond those. Sums over every number of flips and of losses among them.
    """
    rate = flip_rate + drop
    if n <= 0 or rate <= 0:
        return 0.0
    spread = 8 * math.sqrt(n * rate * (1 - min(rate, 1.0))) + 12
    flips = np.arange(max(0, math.floor(n * rate - spread)), min(n, math.ceil(n * rate + spread)) + 1)
    chances = stats.binom.pmf(flips, n, min(rate, 1.0))
    # Smallest number of losses with P(Bin(flips, 1/2) >= losses) <= alpha.
    critical = stats.binom.isf(alpha, flips, 0.5) + 1
    return float(np.sum(chances * stats.binom.sf(critical - 1, flips, (flip_rate / 2 + drop) / rate)))


def minimal_detectable_drop(n: int, flip_rate: float, *, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The least drop of accuracy that the test finds with chance `power`; None where n is too small for any."""

    def excess(drop: float) -> float:
        return mcnemar_power(n, drop, flip_rate, alpha=alpha) - power

    most = 1 - flip_rate
    if n <= 0 or excess(most) < 0:
        return None
    return float(optimize.brentq(excess, 0.0, most, xtol=RESOLUTION)) if excess(0.0) < 0 else 0.0


def normal_detectable_drop(n: int, flip_rate: float, *, alpha: float = 0.05, power: float = POWER) -> float:
    """(z_alpha + z_power) sqrt(flip_rate / n): the usual approximation, too small where few questions flip."""
    return float((stats.norm.isf(alpha) + stats.norm.ppf(power)) * math.sqrt(flip_rate / n))
