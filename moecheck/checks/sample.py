"""What the statistics of an output are computed from, and what each of them says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecheck.formats import Float64
from moecheck.oracle import ErrorModel, Values

Bool = npt.NDArray[np.bool_]
FEWEST = 64  # elements below which averages say nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """One statistic of an output. value: as measured. limit: what honest rounding explains, of |value|.

    said: what a value beyond the limit means, in words; {value} and {limit} are filled in.
    where: the group at fault. flip: what one requantised number on the other side makes of the statistic.
    """

    name: str
    value: float
    limit: float
    said: str
    where: dict[str, int]
    flip: float = 0.0

    @property
    def passes(self) -> bool:
        return bool(abs(self.value) <= self.limit)

    @property
    def message(self) -> str:
        return self.said.format(value=self.value, limit=self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Squares:
    """Sums of z^2: of all elements, [rows] and [columns]."""

    total: float
    by_row: Float64
    by_column: Float64

    @classmethod
    def of(cls, z: Float64) -> Squares:
        """The sums of z [rows, columns]."""
        squares = np.square(z)
        return cls(total=float(squares.sum()), by_row=squares.sum(axis=1), by_column=squares.sum(axis=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the statistics are of: [rows, columns], 0 where `used` is not: error = out - rounded.

    squares, simulated: of the error in units of sigma, and of that of each simulated kernel.
    """

    error: Float64
    squares: Squares
    simulated: tuple[Squares, ...]
    expected: Values
    model: ErrorModel
    used: Bool
    step: Float64
