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

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecheck.accumulators import ACCUMULATORS
from moecheck.formats import FORMATS, AnyArray, Float64, format_of, round_to, to_float64, ulp
from moecheck.numerics import INPUT, STORES, Numerics

NORMAL_SIZE = float(np.sqrt(2.0 / np.pi))  # E|d| of a standard normal d
COLUMNS = 256  # rows of W squared at a time: bounds the extra memory
SQUARES_FIT = (1e-6, 1e4)  # a matrix whose largest element lies between has squares and products that fp32 holds
LARGEST_ROW = 2.0**70  # scale of what is multiplied with such squares
KEPT = 0.18 * 2.0**-48  # of v^2, mean variance of an fp32 rounding
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

    def scaled(self, factor: Float64 | float) -> Estimate:
        """The estimate of factor * value; the product itself is not rounded."""
        square = np.square(factor)
        rare = None if self.rare is None else self.rare * square
        size = None if self.size is None else self.size * np.abs(factor)
        return Estimate(self.value * factor, self.dense * square, rare, size)


def exactly(value: Float64, *, flips: bool) -> Estimate:
    """A value that the kernel was given, without error."""
    return Estimate(value, *_nothing(value, 3 if flips else 1))


def _nothing(value: Float64, count: int) -> list[Float64]:
    """Zeros of a value's shape, several times, without their memory; not to be written to."""
    return [np.broadcast_to(np.float64(0.0), value.shape)] * count


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
    step = ulp(value, name)
    if rare is None or name == "fp32":
        return Estimate(value, dense + np.square(step) / 12.0, rare, size)
    return flipped(estimate, step)._replace(value=rounded(value, name))


def kept(estimate: Estimate) -> Estimate:
    """The estimate of a number that stays in fp32: ulp^2/12 is 0.18 u32^2 v^2 on average over significands.

    Good for one of many numbers that are added up; an output is `stored`, with its exact ulp.
    """
    return estimate._replace(dense=estimate.dense + KEPT * np.square(estimate.value))


def stored_or_kept(estimate: Estimate, name: str) -> Estimate:
    """The estimate after a store in format `name` of a number that others are added to later."""
    return kept(estimate) if name == "fp32" else stored(estimate, name)


def flipped(estimate: Estimate, step: Float64) -> Estimate:
    """The deviation of a value that both sides round to multiples of `step`, q: |d| q below q / 2, else V + q^2/6."""
    value, dense, rare, _ = estimate
    assert rare is not None
    moved = estimate.mean_size
    variance = np.where(moved < step / 2.0, np.maximum(moved * step, rare), dense + rare + np.square(step) / 6.0)
    return Estimate(value, np.zeros(value.shape), variance, moved)


def product(a: Estimate, b: Estimate) -> Estimate:
    """The estimate of a * b, errors taken as independent and small; the product itself is not rounded."""
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


def linear_estimate(
    x: Estimate, w: Float64, *, exact_input: bool = False, stored_low: bool = False, accumulate: str = "fp32-rn"
) -> Estimate:
    """Estimate of y = x W^T: V_dense = (V_x + b u32^2 K x^2) . (W^2)^T + d u32^2 K y^2, b = 0.03, d = 0.06.

    x: estimate [n, K]. w: [N, K]. exact_input: x has no error. accumulate: the profile of the sums, which says what
    b u32^2 K and d u32^2 K are; those of fp32 are given here. stored_low: y is about to be rounded so much more
    coarsely that W^2 may be taken as its mean, which saves the product. Returns [n, N].
    Source: K fp32 roundings of partial sums S_j. Given its end y, a random walk has mean j/K y and the variance of a
    bridge, so sum S_j^2 = K (y^2 / 3 + x^2 . w^2 / 6). A rounding has the variance ulp(S)^2 / 12 = 0.18 u32^2 S^2 over
    evenly spread significands.
    Flips of x stay rare where few of them meet in one sum, and E|sum w d| <= sum |w| E|d|; many are nearly normal.
    """
    y = linear(x.value, w)
    bridge, drifting = ACCUMULATORS[accumulate].variance_factors(x.value.shape[1])
    drift = np.square(y) * drifting
    if exact_input and stored_low:
        mean_square = float(np.vdot(w, w)) / max(w.size, 1)
        of_rows = np.einsum("nk,nk->n", x.value, x.value)[:, None] * (bridge * mean_square)
        return Estimate(y, of_rows + drift) if x.rare is None else Estimate(y, of_rows + drift, *_nothing(y, 2))
    each = np.square(x.value) * bridge
    if not exact_input:
        each += x.dense
    if x.rare is None or x.size is None:
        return Estimate(y, _times(each, w, np.square) + drift)
    if exact_input:
        return Estimate(y, _times(each, w, np.square) + drift, *_nothing(y, 2))
    both = _times(np.concatenate([each, x.rare]), w, np.square)  # one product, for w is squared once then
    dense, rare = both[: len(each)], both[len(each) :]
    return Estimate(y, dense + drift, rare, np.minimum(_times(x.size, w, np.abs), NORMAL_SIZE * np.sqrt(rare)))


def biased(y: Estimate, bias: Float64 | None, before_bias: str) -> Estimate:
    """The estimate of y + bias, y stored in `before_bias` first if that is not fp32. bias: [N]."""
    if bias is None:
        return y
    if before_bias != "fp32":
        y = stored(y, before_bias)
    return y._replace(value=y.value + bias)


def _times(each: Float64, w: Float64, part_of: Callable[..., AnyArray]) -> Float64:
    """The product each . part_of(W)^T of non-negative numbers, [n, N] float64, to the precision of fp32.

    part_of: np.square or np.abs. Computed in fp32, which is enough for a variance and twice as fast, scaled so that
    nothing that matters leaves its range; in float64 where something would.
    """
    largest = float(each.max(initial=0.0))
    if not 0.0 < largest < np.inf:
        return each @ part_of(w).T
    scale = LARGEST_ROW / largest
    rows: npt.NDArray[np.float32] = (each * scale).astype(np.float32)
    if np.count_nonzero(rows) != np.count_nonzero(each):  # a tiny term may be all that one output consists of
        return each @ part_of(w).T
    out = np.empty((len(each), len(w)), np.float32)
    for start in range(0, len(w), COLUMNS):
        part = w[start : start + COLUMNS].astype(np.float32)
        size = max(float(part.max(initial=0.0)), -float(part.min(initial=0.0)))
        if not (SQUARES_FIT[0] < size < SQUARES_FIT[1] or size == 0.0):
            return each @ part_of(w).T
        np.matmul(rows, part_of(part, out=part).T, out=out[:, start : start + COLUMNS])
    product_of: Float64 = out.astype(np.float64) / scale
    return product_of
