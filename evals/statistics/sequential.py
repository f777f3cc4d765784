"""Stopping early without paying for looking: e-processes, whose bound holds at every moment (Ville's inequality)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy import special

FAIL_AT = 100.0  # 1 / .01, the level of McNemar's test
PASS_AT = 20.0  # 1 / .05, one side of a 90 % interval
_BETS = np.linspace(0.05, 0.95, 19)


def worse_evidence(lost: int, gained: int) -> float:
    """Evidence that the candidate loses more than it gains; at most 1/x to reach x, ever, if it does not.

    The mean of (2p)^lost (2 (1 - p))^gained over p uniform in (1/2, 1): 2^(flips + 1) B(lost + 1, gained + 1) times the
    upper half of that beta distribution. Without gains (2^(lost + 1) - 1) / (lost + 1).
    """
    upper = special.betaincc(lost + 1, gained + 1, 0.5)
    if upper <= 0:
        return 0.0
    log = (lost + gained + 1) * math.log(2) + special.betaln(lost + 1, gained + 1) + math.log(upper)
    return math.exp(min(log, 700.0))


class NotWorseEvidence:
    """Evidence that the candidate loses less than `margin`: wealth of bets against "its difference is <= -margin".

    After each question with difference d in {-1, 0, 1} a bet of size x multiplies its wealth by 1 + x (d + margin),
    whose mean is at most 1 under that hypothesis for any 0 <= x < 1 / (1 - margin). The evidence is the mean wealth of
    a fixed set of bets (Waudby-Smith and Ramdas 2024, arXiv 2010.09686).
    """

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self._bets = _BETS / (1 - margin)
        self._log = np.zeros(len(_BETS))

    def add(self, differences: Iterable[int]) -> float:
        """The evidence after these questions too."""
        for difference in differences:
            self._log += np.log1p(self._bets * (difference + self.margin))
        return self.value

    @property
    def value(self) -> float:
        return float(np.exp(np.minimum(special.logsumexp(self._log) - math.log(len(self._log)), 700.0)))
