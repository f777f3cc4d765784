"""Stores of a declared contract: how each one rounds, and how uncertain that makes a kernel's result.

Model: each rounding to nearest is an independent error, uniform over one ulp, hence of variance ulp^2/12.
Source: N. Higham and T. Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41 (2019).
`fp32` in a contract means kept in the kernel's fp32 registers: the reference does not round there, but every kernel
does, in fp32, so the variance of an fp32 rounding is always counted.
"""

from __future__ import annotations

import numpy as np

from moecheck.formats import FORMATS, AnyArray, Float64, format_of, round_to, to_float64, ulp
from moecheck.numerics import INPUT, STORES, Numerics

U32 = 2.0**-24  # unit roundoff of fp32
COLUMNS = 256  # rows of W squared at a time: bounds the extra memory
EXACT = Numerics(out="fp32")  # every value kept: the mathematics itself


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


def store_variance(values: Float64, name: str) -> Float64:
    """ulp(v)^2 / 12 of format `name`."""
    return np.square(ulp(values, name)) / 12.0


def exact_in(source: str, target: str) -> bool:
    """Whether a number already rounded to `source` is a number of `target` (as far as precision goes)."""
    return FORMATS[source].precision <= FORMATS[target].precision


def linear(x: Float64, w: Float64, bias: Float64 | None = None) -> Float64:
    """Linear map x W^T + b. x: [n, K]. w: [N, K]. bias: [N]. Returns [n, N]."""
    y: Float64 = x @ w.T
    return y if bias is None else np.add(y, bias, out=y)


def linear_variance(x: Float64, variance: Float64 | None, w: Float64, y: Float64) -> Float64:
    """V(x W^T) = (V_x + u32^2 K x^2 / 6) . (W^2)^T + u32^2 K y^2 / 16: inputs' errors and fp32 accumulation.

    x, variance: [n, K]. w: [N, K]. y: [n, N], the sums themselves. Returns [n, N].
    Source: K fp32 roundings of partial sums S_j. Given its end y, a random walk has mean j/K y and the variance of a
    bridge, so sum S_j^2 = K (y^2 / 3 + x^2 . w^2 / 6). A rounding has the variance ulp(S)^2 / 12 = 0.18 u32^2 S^2 over
    evenly spread significands, hence 0.06 = 1/16 for the drift; the bridge's share is kept at its bound 1/6.
    """
    each = np.square(x) * (U32**2 * x.shape[1] / 6.0)
    if variance is not None:
        each += variance
    out = np.empty((x.shape[0], w.shape[0]))
    squares = np.empty((min(COLUMNS, w.shape[0]), w.shape[1]))
    for start in range(0, w.shape[0], COLUMNS):
        part = w[start : start + COLUMNS]
        np.matmul(each, np.square(part, out=squares[: len(part)]).T, out=out[:, start : start + COLUMNS])
    out += np.square(y) * (U32**2 * x.shape[1] / 16.0)
    return out
