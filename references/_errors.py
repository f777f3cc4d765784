"""What a reference knows of a kernel's error: of each element, and of a weighted sum over a row of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from moecheck.formats import AnyArray, Float64

from ._stores import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedError:
    """An error source in front of a linear map, which every column of a row shares.

    rows: [n] output row of each source row. scale: [n] what the map's result is multiplied by. variance, step: [n, I]
    of the source's elements and the size of one flip of each (fp32 is enough). matrix: gives the map, [H, I].
    """

    rows: AnyArray
    scale: Float64
    variance: AnyArray
    step: AnyArray
    matrix: Callable[[], Float64]

    def scaled(self, factor: float) -> SharedError:
        return replace(self, scale=self.scale * factor)

    def projected(self, c: Float64) -> tuple[Float64, Float64]:
        """[n], [n]: Var of sum_i c_i error_i, and the most that one flip adds to it. c: [rows, H] coefficients."""
        along = (c[self.rows] * self.scale[:, None]) @ self.matrix()
        variance: Float64 = np.einsum("nj,nj,nj->n", along, along, self.variance)
        return variance, np.max(np.abs(along) * self.step, axis=1, initial=0.0)

    def largest_flip(self, c: Float64) -> Float64:
        """[n]: sum_i c_i error_i^2 of the one flip that adds most to it. c: [rows, H], not negative."""
        squares: AnyArray = np.square(self.matrix().astype(np.float32))
        along = (c[self.rows] * np.square(self.scale)[:, None]).astype(np.float32) @ squares
        return np.asarray(np.max(along * np.square(self.step), axis=1, initial=0.0), np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorError:
    """The error of one factor of a row's summand.

    rows, variance: [n]. along: [n, H], derivative by the factor. step: [n], size of one flip of it, None for no store.
    """

    rows: AnyArray
    variance: Float64
    along: AnyArray
    step: Float64 | None = None

    def scaled(self, factor: float) -> FactorError:
        return replace(self, along=self.along * factor)

    def projected(self, c: Float64) -> tuple[Float64, Float64]:
        """[n], [n]: Var of sum_i c_i error_i, and the most that one flip adds. c: [rows, H]."""
        along = np.einsum("nh,nh->n", c[self.rows], self.along)
        flip = np.zeros(len(along)) if self.step is None else np.abs(along) * self.step
        return self.variance * np.square(along), flip

    def largest_flip(self, c: Float64) -> Float64:
        """[n]: as of SharedError."""
        if self.step is None:
            return np.zeros(len(self.rows))
        flip: Float64 = np.einsum("nh,nh->n", c[self.rows], np.square(self.along)) * np.square(self.step)
        return flip


@dataclass(frozen=True, slots=True)
class Errors:
    """The estimate of an output [rows, columns], and which part of its variance the columns of a row share.

    shared: [rows, columns], the part of the variance that `sources` explain; None where all errors are independent.
    rows: whether `sources` are known, so that sums along a row can be asked about.
    """

    estimate: Estimate
    shared: Float64 | None = None
    sources: tuple[SharedError | FactorError, ...] = ()
    rows: bool = True

    @property
    def value(self) -> Float64:
        """The reference's value, [rows, columns]: the true one, or the rounded one where flips were asked for."""
        return self.estimate.value

    @property
    def sigma(self) -> Float64:
        """Standard deviation of each element's error, [rows, columns]."""
        return np.sqrt(self.estimate.variance)

    def __iter__(self) -> Iterator[Float64]:
        """Value and sigma, so that a call can be unpacked into the two."""
        yield self.value
        yield self.sigma

    def projected(self, c: Float64) -> tuple[Float64, Float64]:
        """Var of sum_i c_ti error_ti for each row t, and the most that one flip before the last store adds.

        c: [rows, columns], finite. Returns two [rows].

        The part of each element's variance that no source explains is independent of all others.
        """
        if not self.rows:
            raise ValueError("the errors were estimated without what rows share.")
        flip = np.zeros(len(c))
        variance = self.estimate.variance
        independent = variance if self.shared is None else np.maximum(variance - self.shared, 0.0)
        total: Float64 = np.einsum("th,th,th->t", c, c, independent)
        for source in self.sources:
            variance_of, flip_of = source.projected(c)
            np.add.at(total, source.rows, variance_of)
            np.maximum.at(flip, source.rows, flip_of)
        return total, flip

    def largest_flip(self, c: Float64) -> Float64:
        """[rows]: sum_i c_i error_i^2 of the one flip of each row that adds most to it. c: [rows, columns], >= 0."""
        flip = np.zeros(len(c))
        for source in self.sources:
            np.maximum.at(flip, source.rows, source.largest_flip(c))
        return flip
