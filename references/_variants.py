"""Simulated kernels: the same rounding points, each with fp32 errors of its own.

Where a value is requantised, a tiny error now and then becomes a whole step, and how large the sum of such steps gets
is better tried than derived. A variant is what a kernel of the contract would return: its sums and its activation
function are off by normal errors of the variance that the references' model has for them, before every store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecheck.formats import Float64, ulp
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._expert import Weights
from ._quantize import quantized
from ._row_groups import whole
from ._stores import Estimate, exact_linear_estimate, rounded
from .act_and_mul import activated

FUNCTION_ULPS = 1.0  # standard deviation, in fp32 ulps of their inputs, of act and of the product: two ulps at most

SOME_COLUMNS = 16
AT_A_TIME = 256  # rows of a matrix in fp32 at a time: bounds the extra memory


class Noise(NamedTuple):
    """variants: how many are simulated. normal: standard normal numbers of a shape, new ones each time. of_expert: the
    same for each expert, where the numbers must not depend on the order in which experts are computed.
    """

    variants: int
    normal: Callable[[tuple[int, ...]], Float64]
    of_expert: Callable[[int], Callable[[tuple[int, ...]], Float64]] | None = None

    def at(self, expert: int) -> Noise:
        """The noise of one expert."""
        return self if self.of_expert is None else self._replace(normal=self.of_expert(expert))


def expert_variants(x: Float64, weights: Weights, spec: ExpertSpec, stores: Numerics, noise: Noise) -> Float64:
    """Output z of one expert in every variant, [V, n, H].

    x: [n, H] as the kernel was given it, without error, or [V, n, H] where each variant computed its own.
    Products are computed once in float64, of the first variant's x and of the reference's h; what another variant's
    differ by is multiplied in fp32, which is exact enough for a difference.
    """
    if stores.a1_quant is not None:
        x = quantized(x.reshape(-1, x.shape[-1]), stores.a1_quant, weights.a1).value.reshape(x.shape)
    first = x if x.ndim == 2 else x[0]
    y = exact_linear_estimate(first, whole(first, weights.w13), accumulate=stores.accumulate)
    products = _with_errors(y, first, weights.w13, stores, noise)
    if x.ndim == 3:
        products += _of_differences(x - first, weights.w13)
    gate_up = _hidden(products, weights.b13, stores.gate_up, stores)
    shape = gate_up.shape
    errors = noise.normal(shape)
    errors *= FUNCTION_ULPS * 2.0**-23
    errors += 1.0
    gate_up = np.multiply(gate_up, errors, out=errors)
    h = _quantized_all(activated(gate_up.reshape(-1, shape[-1]), spec, stores), stores, weights.a2)
    exact = _hidden(y.value, weights.b13, stores.gate_up, stores)
    middle = _quantized_all(activated(exact, spec, stores), stores, weights.a2)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = h.reshape(noise.variants, *middle.shape) - middle
        y = exact_linear_estimate(middle, whole(middle, weights.w2), accumulate=stores.accumulate)
        z = _with_errors(y, middle, weights.w2, stores, noise)
        z += _of_differences(apart, weights.w2)
    return _hidden(z, weights.b2, stores.per_expert, stores)


def finished_sum(y: Float64, fmt: str, noise: Noise) -> Float64:
    """Sums [..., H] of which each has one fp32 rounding more, stored in `fmt`."""
    y = y + ulp(y, "fp32") * noise.normal(y.shape) / np.sqrt(12.0)
    return y.astype(np.float32).astype(np.float64) if fmt == "fp32" else rounded(y, fmt)


def products_with_errors(x: Float64, w: Float64, stores: Numerics, noise: Noise) -> Float64:
    """Products x W^T with the errors of a kernel's sums in every variant, [V, n, N]. x: [n, K], the same in all."""
    return _with_errors(exact_linear_estimate(x, whole(x, w), accumulate=stores.accumulate), x, w, stores, noise)


def _of_differences(apart: Float64, w: Float64) -> npt.NDArray[np.float32]:
    """What variants' inputs differ by, [V, n, K], times W^T: [V, n, N]."""
    with np.errstate(invalid="ignore", over="ignore"):
        rows = apart.astype(np.float32).reshape(-1, apart.shape[-1])
        product = np.empty((len(rows), len(w)), np.float32)
        for start in range(0, len(w), AT_A_TIME):
            part = slice(start, start + AT_A_TIME)
            np.matmul(rows, w[part].astype(np.float32).T, out=product[:, part])
    return product.reshape(*apart.shape[:-1], len(w))


def _with_errors(y: Estimate, x: Float64, w: Float64, stores: Numerics, noise: Noise) -> Float64:
    """Products with the errors of a kernel's sums in every variant, [V, n, N]. y: their estimate, [n, N]."""
    errors = noise.normal((noise.variants, *y.value.shape))
    with np.errstate(invalid="ignore", over="ignore"):
        deviation = np.sqrt(y.dense)
        if stores.accumulate == "fp32-rn":
            deviation[_sums_are_exact(x, w)] = 0.0
        errors *= deviation
        errors += y.value
    return errors


def _sums_are_exact(x: Float64, w: Float64) -> npt.NDArray[np.bool_]:
    """[n, N]: whether fp32 sums of the products x w have no rounding in any order. x: [n, K]. w: [N, K].

    All partial sums are multiples of the product of the lowest bits, and none exceeds the absolute sum; up to 2^24 of
    these fp32 holds. So it is where both operands have few bits (mxfp4), whose sums often are ties of a bf16 store:
    noise would then break ties that every kernel rounds alike.
    """
    of_x, some = _lowest_bit(x)[:, None], w[:, :SOME_COLUMNS]
    # A row's lowest bit is at most that of some of its columns, and the largest weight at least the largest of these,
    # which tell in no time that most weights have many bits.
    if not np.any(of_x * _lowest_bit(some)[None, :] * 2.0**24 > _largest(x) * _largest(some)):
        return np.zeros((len(x), len(w)), np.bool_)
    step = of_x * _lowest_bit(w)[None, :]
    if not np.any(step * 2.0**24 > _largest(x) * _largest(w)):
        return np.zeros(step.shape, np.bool_)
    return np.asarray(np.abs(x) @ np.abs(w).T <= 2.0**24 * step)


def _largest(a: Float64) -> float:
    """Largest magnitude, without a copy of all magnitudes."""
    return max(float(np.max(a, initial=0.0)), -float(np.min(a, initial=0.0)))


def _lowest_bit(a: Float64) -> Float64:
    """[rows]: the largest power of two that all finite numbers of a row are multiples of."""
    significand, exponent = np.frexp(np.where(np.isfinite(a), a, 0.0))
    digits = (significand * 2.0**53).astype(np.int64)
    lowest = np.ldexp((digits & -digits).astype(np.float64), exponent - 53)
    return np.asarray(np.min(np.where(lowest > 0.0, lowest, np.inf), axis=1, initial=2.0**512))


def _hidden(y: Float64, bias: Float64 | None, fmt: str, stores: Numerics) -> Float64:
    return rounded(y if bias is None else rounded(y, stores.before_bias) + bias, fmt)


def _quantized_all(h: Float64, stores: Numerics, given: float | None) -> Float64:
    return h if stores.a2_quant is None else quantized(h, stores.a2_quant, given).value
