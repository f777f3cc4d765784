"""The null ensemble: what simulated honest kernels of a contract return, from which limits are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from . import draw
from .cases import Case
from .formats import Float64

VARIANTS = 8
# One honest kernel in some hundred exceeds this many times the largest of 8 values (numerics.md section 5). So only
# maxima over many groups are judged like this, with one flip added; sums over rows take their variance from all rows of
# all variants instead.
SPREAD = 1.5
ROW_SPREAD = 3.0  # for rows without a flip, whose errors are fp32 errors: a kernel's are up to twice the model's
FEWEST_ROWS = 4
FALSE_ALARM = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """errors: [V, rows, columns] fp32, output less the rounded reference, of every simulated kernel.

    flip: [rows], root mean square over the row of the largest error, in units of sigma, that one number which is
    requantised to the other side can make: simulated kernels may happen to have none.
    """

    errors: npt.NDArray[np.float32]
    flip: Float64

    def rows(self, index: Any, *, copy: bool = False) -> Ensemble:
        """The ensemble of some rows."""
        errors, flip = self.errors[:, index], self.flip[index]
        return Ensemble(errors=errors.copy() if copy else errors, flip=flip.copy() if copy else flip)

    def replace_rows(self, index: Any, other: Ensemble, picked: Any) -> None:
        """Put the rows `picked` of `other` in the place of the rows `index`."""
        self.errors[:, index] = other.errors[:, picked]
        self.flip[index] = other.flip[picked]

    def projected_variance(self, c: Float64) -> Float64:
        """[rows]: mean over the variants of (sum_i c_i error_i)^2. c: [rows, columns]."""
        along = np.stack(
            [np.einsum("th,th->t", c, np.where(np.isfinite(errors), errors, 0.0)) for errors in self.errors]
        )
        return np.asarray(np.mean(np.square(along), axis=0))


def normal_numbers(case: Case, *part: object) -> Callable[[tuple[int, ...]], Float64]:
    """A source of standard normal numbers, always the same ones for a case, or for a part of it."""
    drawn = iter(range(1 << 62))

    def normal(shape: tuple[int, ...]) -> Float64:
        bits = draw.philox(case.key, "variants", *part, next(drawn))
        numbers: Float64 = draw.look_up(bits, draw.normal_quantiles(), shape)
        return numbers

    return normal


def limit_of(values: list[float], closed: list[float], limit: float, flip: float) -> float:
    """The limit of a statistic: SPREAD times the largest of the ensemble, and one flip.

    values, closed: of each variant, the statistic and the closed form's limit, which knows how large the group was.
    limit: the closed form's limit of the kernel's own. flip: what one flip makes of the statistic.
    """
    ratio = max((value / most for value, most in zip(values, closed, strict=True) if most > 0.0), default=0.0)
    return float(np.hypot(SPREAD * ratio * limit, flip))


def usual_row(rows: int) -> int:
    """Which row is the usual one when rows are sorted by their error: a quarter of them have less."""
    return (rows - 1) // 4


def usual_limit(pooled: Float64) -> float:
    """The limit of the usual row's error, from the errors of all rows of all variants. pooled: [V, rows].

    Most rows have fp32 errors only, a share p of them has a flip as well, which is a hundred times larger. The usual
    row exceeds a level that each row exceeds with probability p with a probability below C(n, m) p^(n - m), m rows
    being less: the level is the quantile of all rows at which that is FALSE_ALARM.
    """
    count = pooled.shape[1]
    less = usual_row(count)
    most = (FALSE_ALARM / comb(count, less)) ** (1.0 / (count - less))
    return float(ROW_SPREAD * np.quantile(pooled, 1.0 - most, method="higher"))
