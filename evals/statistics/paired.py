"""Right and wrong answers of two arms to the same questions: the 2x2 table and McNemar's exact test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from moecheck.errors import HarnessError


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTable:
    """both: right in both arms. lost: right in the baseline only. gained: right in the candidate only. neither."""

    both: int
    lost: int
    gained: int
    neither: int

    @classmethod
    def of(cls, baseline: Sequence[bool], candidate: Sequence[bool]) -> PairedTable:
        """Of two sequences of right answers, question by question."""
        if len(baseline) != len(candidate):
            raise HarnessError(f"paired answers need equal numbers, not {len(baseline)} and {len(candidate)}.")
        pairs = [(bool(one), bool(two)) for one, two in zip(baseline, candidate, strict=True)]
        return cls(
            both=pairs.count((True, True)),
            lost=pairs.count((True, False)),
            gained=pairs.count((False, True)),
            neither=pairs.count((False, False)),
        )

    @property
    def n(self) -> int:
        return self.both + self.lost + self.gained + self.neither

    @property
    def flips(self) -> int:
        """Questions that one arm alone answers rightly."""
        return self.lost + self.gained

    @property
    def difference(self) -> float:
        """Accuracy of the candidate minus that of the baseline; NaN without questions."""
        return (self.gained - self.lost) / self.n if self.n else math.nan

    @property
    def standard_error(self) -> float:
        """Of the difference: sqrt((f - d^2) / n), f = flips / n (Miller 2024, arXiv 2411.00640, paired)."""
        return math.sqrt((self.flips / self.n - self.difference**2) / self.n) if self.n else math.nan


def mcnemar_one_sided(table: PairedTable) -> float:
    """P(Bin(flips, 1/2) >= lost): exact p-value of "the candidate is no worse" against "it is worse"."""
    return float(stats.binom.sf(table.lost - 1, table.flips, 0.5))


def mcnemar_two_sided(table: PairedTable) -> float:
    """Exact p-value of "the arms are alike"; the distribution is symmetric, so twice the smaller tail."""
    return min(1.0, 2 * float(stats.binom.sf(max(table.lost, table.gained) - 1, table.flips, 0.5)))


def mcnemar_mid_p(table: PairedTable) -> float:
    """The one-sided p-value with half the probability of what was seen."""
    return mcnemar_one_sided(table) - float(stats.binom.pmf(table.lost, table.flips, 0.5)) / 2


def more_flips_than(flips: int, n: int, null_flips: int, null_n: int) -> float:
    """Fisher's exact one-sided p-value of "flips among n are no more frequent than null_flips among null_n"."""
    square = [[flips, n - flips], [null_flips, null_n - null_flips]]
    return float(stats.fisher_exact(square, alternative="greater").pvalue)
