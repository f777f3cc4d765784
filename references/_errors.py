"""What a reference knows of a kernel's error: of each element, and of a weighted sum over a row of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from moecheck.formats import AnyArray, Float64

from ._parallel import each
from ._row_groups import Group
from ._stores import Estimate

AT_A_TIME = 1024  # rows of a matrix at a time: bounds the extra memory


class Question(NamedTuple):
    """What is asked of a kernel's error. flips: about the reference that rounds, not about the true value. rows:
    whether sums along a row will be asked of the answer.
    """

    flips: bool
    rows: bool


def questions(*, flips: bool, rows: bool, both: bool) -> list[Question]:
    """One question; or both, the first of which is about the true value and knows nothing of sums along a row."""
    return [Question(False, False), Question(True, rows)] if both else [Question(flips, rows)]


def answer(errors: Sequence[Errors]) -> Errors:
    """The answers to `questions` as one."""
    first, *more = errors
    return replace(first, about_rounded=more[0]) if more else first


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedError:
    """An error source in front of a linear map, which every column of a row shares.

    rows: [n] output row of each source row. scale: [n] what the map's result is multiplied by. variance, step: [n, I]
    of the source's elements and the size of one flip of each (fp32 is enough). groups: the map of each source row,
    [H, I].
    """

    rows: AnyArray
    scale: Float64
    variance: AnyArray
    step: AnyArray
    groups: Sequence[Group]

    def scaled(self, factor: float) -> SharedError:
        return replace(self, scale=self.scale * factor)

    def projections(self, *cs: Float64) -> list[tuple[Float64, Float64]]:
        """For each of cs, [rows, H]: Var of sum_i c_i error_i, and the most that one flip adds to it, both [n]."""
        weighted = [c[self.rows] * self.scale[:, None] for c in cs]
        answers = []
        for along in self._through(np.stack(weighted), lambda w: w):
            variance = np.einsum("nj,nj,nj->n", along, along, self.variance)
            answers.append((variance, np.max(np.abs(along) * self.step, axis=1, initial=0.0)))
        return answers

    def largest_flip(self, c: Float64) -> Float64:
        """[n]: sum_i c_i error_i^2 of the one flip that adds most to it. c: [rows, H], not negative."""
        weighted = (c[self.rows] * np.square(self.scale)[:, None]).astype(np.float32)
        along = self._through(weighted, lambda w: np.square(w.astype(np.float32)))
        return np.asarray(np.max(along * np.square(self.step), axis=1, initial=0.0), np.float64)

    def _through(self, c: AnyArray, part_of: Callable[[Float64], AnyArray]) -> AnyArray:
        """The products of c, [..., n, H], with part_of(W) of each row's map: [..., n, I]."""

        def of_group(group: Group) -> AnyArray:
            w, rows = group.matrix(), c[..., group.rows, :]
            parts = (rows[..., s : s + AT_A_TIME] @ part_of(w[s : s + AT_A_TIME]) for s in range(0, len(w), AT_A_TIME))
            return np.asarray(sum(parts))

        return np.concatenate(list(each(of_group, self.groups)), axis=-2)


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

    def projections(self, *cs: Float64) -> list[tuple[Float64, Float64]]:
        """As of SharedError."""
        return [self.projected(c) for c in cs]

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
    rows: whether `sources` are known, so that sums along a row can be asked about. about_rounded: of the reference that
    rounds, where both questions were asked; then all else is about the true value.
    """

    estimate: Estimate
    shared: Float64 | None = None
    sources: tuple[SharedError | FactorError, ...] = ()
    rows: bool = True
    about_rounded: Errors | None = None

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
        return self.projections(c)[0]

    def projections(self, *cs: Float64) -> list[tuple[Float64, Float64]]:
        """As `projected`, for several c at once."""
        if not self.rows:
            raise ValueError("the errors were estimated without what rows share.")
        variance = self.estimate.variance
        independent = variance if self.shared is None else np.maximum(variance - self.shared, 0.0)
        answers = [(np.einsum("th,th,th->t", c, c, independent), np.zeros(len(c))) for c in cs]
        for source in self.sources:
            for (total, flip), (variance_of, flip_of) in zip(answers, source.projections(*cs), strict=True):
                np.add.at(total, source.rows, variance_of)
                np.maximum.at(flip, source.rows, flip_of)
        return answers

    def largest_flip(self, c: Float64) -> Float64:
        """[rows]: sum_i c_i error_i^2 of the one flip of each row that adds most to it. c: [rows, columns], >= 0."""
        flip = np.zeros(len(c))
        for source in self.sources:
            np.maximum.at(flip, source.rows, source.largest_flip(c))
        return flip
