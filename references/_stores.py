"""Stores of a declared contract: how each one rounds, and how uncertain that makes a kernel's result.

Two questions are asked of a kernel's error, and one `Estimate` answers either.

* Its error about the *true* mathematics (`flips=False`): each rounding to nearest is an independent error, uniform over
  one ulp, hence of variance ulp^2/12. Source: N. Higham and T. Mary, A New Approach to Probabilistic Rounding Error
  Analysis, SIAM J. Sci. Comput. 41 (2019).
* Its deviation from the reference that *rounds where the kernel rounds* (`flips=True`): both round the same number up
  to a small d, so they agree unless a boundary lies between: a flip of one ulp q, with probability |d|/q. Averaged over
  where the boundary lies, E|flip| = |d| and E flip^2 = |d| q for |d| < q. Flips are rare, so an error has a dense part,
  taken as normal, and a rare part, of which the mean size is kept beside the variance.

`fp32` in a contract means kept in the kernel's fp32 registers: the reference does not round there, but every kernel
does, in fp32, so the variance of an fp32 rounding is always counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moecheck.accumulators import ACCUMULATORS
from moecheck.formats import FORMATS, AnyArray, Float64, format_of, round_to, to_float64, ulp
from moecheck.numerics import INPUT, STORES, Numerics

from ._row_groups import Group, products

NORMAL_SIZE = float(np.sqrt(2.0 / np.pi))  # E|d| of a standard normal d
KEPT = 0.18 * 2.0**-48  # of v^2, mean variance of an fp32 rounding
_ZERO = np.zeros(1)
EXACT = Numerics(out="fp32")  # every value kept: the mathematics itself


class Estimate(NamedTuple):
    """A value and what is known of a kernel's error in it, arrays of one shape.

    dense: variance of the part that every element has. rare, size: variance and mean absolute value of the part made of
    flips, None where the error about the true value is asked for.
    """

    value: Float64
    dense: Float64
    rare: Float64 | None = None
    size: Float64 | None = None

    @property
    def variance(self) -> Float64:
        return self.dense if self.rare is None else self.dense + self.rare

    @property
    def mean_size(self) -> Float64:
        """E|error| of each element."""
        size = NORMAL_SIZE * np.sqrt(self.dense)
        return size if self.size is None else size + self.size

    @property
    def exact(self) -> bool:
        """Whether the value was given, so that it has no error."""
        return not any(self.dense.strides) and (self.rare is None or not any(self.rare.strides))

    def scaled(self, factor: Float64 | float) -> Estimate:
        """The estimate of factor * value; the product itself is not rounded."""
        return self.through(self.value * factor, factor)

    def through(self, value: Float64, derivative: Float64 | float) -> Estimate:
        """The estimate of a function of the value, given what it returns and its derivative."""
        if self.exact:
            return exactly(value, flips=self.rare is not None)
        square = np.square(derivative)
        rare = None if self.rare is None else self.rare * square
        size = None if self.size is None else self.size * np.abs(derivative)
        return Estimate(value, self.dense * square, rare, size)


def exactly(value: Float64, *, flips: bool) -> Estimate:
    """A value that the kernel was given, without error."""
    return given(Estimate(value, nothing(value)), flips=flips)


def given(estimate: Estimate, *, flips: bool) -> Estimate:
    """The estimate of a number that no store has made uncertain yet, as either question wants it."""
    if not flips or estimate.rare is not None:
        return estimate
    return estimate._replace(rare=nothing(estimate.value), size=nothing(estimate.value))


def nothing(value: Float64) -> Float64:
    """Zeros of a value's shape without their memory; not to be written to."""
    return np.ndarray(value.shape, np.float64, _ZERO, strides=(0,) * value.ndim)  # ten times as fast as broadcast_to


def contract(numerics: Numerics | None, dtype: str | None, activations: AnyArray, *, undeclared: Numerics) -> Numerics:
    """The contract with `input` replaced by `dtype`, or by the format of `activations` where `dtype` is None.

    undeclared: what stands for numerics=None.
    """
    chosen = undeclared if numerics is None else numerics
    if all(getattr(chosen, name) != INPUT for name in STORES):
        return chosen
    return chosen.resolve(dtype or format_of(activations.dtype))


def decode(values: AnyArray) -> Float64:
    """float64 values of a stored array; a float64 array comes back itself, not copied (it may be a whole expert)."""
    return values if values.dtype == np.float64 else to_float64(values)


def rounded(values: Float64, name: str) -> Float64:
    """Values as a store in format `name` leaves them; `fp32` keeps them unrounded."""
    return values if name == "fp32" else round_to(values, name)


def stored(estimate: Estimate, name: str) -> Estimate:
    """The estimate after a store in format `name`."""
    value, dense, rare, size = estimate
    if rare is None or name == "fp32":
        rounding = _of_rounding(ulp(value, name))
        return Estimate(value, rounding if estimate.exact else dense + rounding, rare, size)
    if estimate.exact:
        return exactly(rounded(value, name), flips=True)
    return flipped(estimate, ulp(value, name))._replace(value=rounded(value, name))


def _of_rounding(step: Float64) -> Float64:
    """Variance of a rounding to multiples of `step`, step^2 / 12; `step` is overwritten with it."""
    np.square(step, out=step)
    step /= 12.0
    return step


def kept(estimate: Estimate) -> Estimate:
    """The estimate of a number that stays in fp32: ulp^2/12 is 0.18 u32^2 v^2 on average over significands.

    Good for one of many numbers that are added up; an output is `stored`, with its exact ulp.
    """
    dense = np.square(estimate.value)
    dense *= KEPT
    dense += estimate.dense
    return estimate._replace(dense=dense)


def stored_or_kept(estimate: Estimate, name: str) -> Estimate:
    """The estimate after a store in format `name` of a number that others are added to later."""
    return kept(estimate) if name == "fp32" else stored(estimate, name)


def stored_unless_kept(estimate: Estimate, name: str) -> Estimate:
    """The estimate after a store in format `name`; as it is for a number that was in fp32 before."""
    return estimate if name == "fp32" else stored(estimate, name)


def flipped(estimate: Estimate, step: Float64) -> Estimate:
    """The deviation of a value that both sides round to multiples of `step`, q: |d| q below q / 2, else V + q^2/6."""
    value, dense, rare, _ = estimate
    assert rare is not None
    moved = estimate.mean_size
    variance = np.where(moved < step / 2.0, np.maximum(moved * step, rare), dense + rare + np.square(step) / 6.0)
    return Estimate(value, np.zeros(value.shape), variance, moved)


def product(a: Estimate, b: Estimate) -> Estimate:
    """The estimate of a * b, errors taken as independent and small; the product itself is not rounded."""
    if a.exact:
        a, b = b, a
    if b.exact:
        return a.scaled(b.value)
    dense = a.dense * np.square(b.value) + b.dense * np.square(a.value)
    value = a.value * b.value
    if a.rare is None or b.rare is None or a.size is None or b.size is None:
        return Estimate(value, dense)
    rare = a.rare * np.square(b.value) + b.rare * np.square(a.value)
    return Estimate(value, dense, rare, a.size * np.abs(b.value) + b.size * np.abs(a.value))


def total(a: Estimate, b: Estimate) -> Estimate:
    """The estimate of a + b; the sum itself is not rounded."""
    if a.rare is None or b.rare is None or a.size is None or b.size is None:
        return Estimate(a.value + b.value, a.dense + b.dense)
    return Estimate(a.value + b.value, a.dense + b.dense, a.rare + b.rare, a.size + b.size)


def exact_in(source: str, target: str) -> bool:
    """Whether a number already rounded to `source` is a number of `target` (as far as precision goes)."""
    return FORMATS[source].precision <= FORMATS[target].precision


def linear(x: Float64, w: Float64, bias: Float64 | None = None, *, before_bias: str = "fp32") -> Float64:
    """Linear map x W^T + b, rounded at `before_bias` where there is a bias. x: [n, K]. w: [N, K]. b: [N]. [n, N]."""
    y: Float64 = x @ w.T
    return y if bias is None else rounded(y, before_bias) + bias


def exact_linear_estimate(
    x: Float64, groups: Sequence[Group], *, stored_low: bool = False, accumulate: str = "fp32-rn"
) -> Estimate:
    """Estimate of y = x W^T of an x without error: V = b u32^2 K x^2 . (W^2)^T + d u32^2 K y^2, see linear_estimates.

    x: [n, K]. stored_low: y is about to be rounded so much more coarsely that W^2 may be taken as its mean, which saves
    the product. Returns [n, N], without flips.
    """
    bridge, drifting = ACCUMULATORS[accumulate].variance_factors(x.shape[1])
    if stored_low:
        found = products(groups, [x], norms=True)
        mean_square = np.mean(found.norms, axis=1, keepdims=True) / max(x.shape[1], 1)
        of_rows = np.vecdot(x, x)[:, None] * (mean_square * bridge)
    else:
        found = products(groups, [x], squared=[np.square(x) * bridge])
        of_rows = found.squares[0]
    y = found.values[0]
    dense = np.square(y)
    dense *= drifting
    dense += of_rows
    return Estimate(y, dense)


def linear_estimates(
    xs: Sequence[Estimate], groups: Sequence[Group], *, accumulate: str = "fp32-rn", norms: bool = False
) -> tuple[list[Estimate], Float64]:
    """Estimates of y = x W^T: V_dense = (V_x + b u32^2 K x^2) . (W^2)^T + d u32^2 K y^2, b = 0.03, d = 0.06.

    xs: estimates of [n, K]. groups: the matrices, [N, K]. accumulate: the profile of the sums, which says what
    b u32^2 K and d u32^2 K are; those of fp32 are given here. Returns estimates of [n, N], and where norms are asked
    for, sum_k W_ik^2 of every row's matrix, [n, N].
    Source: K fp32 roundings of partial sums S_j. Given its end y, a random walk has mean j/K y and the variance of a
    bridge, so sum S_j^2 = K (y^2 / 3 + x^2 . w^2 / 6). A rounding has the variance ulp(S)^2 / 12 = 0.18 u32^2 S^2 over
    evenly spread significands.
    Flips of x stay rare where few of them meet in one sum, and E|sum w d| <= sum |w| E|d|; many are nearly normal.
    """
    bridge, drifting = ACCUMULATORS[accumulate].variance_factors(xs[0].value.shape[1])
    squared: list[Float64] = []
    for x in xs:
        each = np.square(x.value)
        each *= bridge
        each += x.dense
        squared += [each] if x.rare is None else [each, x.rare]
    sizes = [x.size for x in xs if x.size is not None]
    found = products(groups, [x.value for x in xs], squared=squared, sized=sizes, norms=norms)
    variances, sums = iter(found.squares), iter(found.sizes)
    estimates = []
    for x, y in zip(xs, found.values, strict=True):
        dense = next(variances)
        dense += np.square(y) * drifting
        if x.rare is None:
            estimates.append(Estimate(y, dense))
            continue
        rare = next(variances)
        estimates.append(Estimate(y, dense, rare, np.minimum(next(sums), NORMAL_SIZE * np.sqrt(rare))))
    return estimates, found.norms


def biased(y: Estimate, bias: Float64 | None, before_bias: str) -> Estimate:
    """The estimate of y + bias, y stored in `before_bias` first if that is not fp32. bias: [N], or [n, N] by row."""
    if bias is None:
        return y
    if before_bias != "fp32":
        y = stored(y, before_bias)
    return y._replace(value=y.value + bias)
