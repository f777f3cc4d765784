"""Reference of `grouped_gemm`: y[g] = x[g] w[g]^T over ragged groups of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics

from ._expert import ExpertArrays
from ._stores import EXACT, contract, decode, linear, linear_variance, rounded, store_variance


def grouped_gemm(
    *,
    x: AnyArray,
    w: ExpertArrays,
    expert_ends: AnyArray,
    bias: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """y[i] = w[e] x[i] + bias[e] for rows expert_ends[e - 1] <= i < expert_ends[e].

    x: [R, K] storage dtype. w: [E, n, K], may be lazy (ExpertArrays): only groups with rows are asked for.
    expert_ends: [E] int, inclusive prefix sum of the groups' rows, not decreasing, <= R; equal neighbours are an empty
    group. bias: [E, n]. Returns [R, n] float64. numerics: None for the mathematics; else rounds at `out`.
    Unspecified region: rows expert_ends[-1] and above; the reference leaves NaN.
    Source: torch.nn.functional.grouped_mm (offs); Gale et al. 2022, MegaBlocks (arXiv:2211.15841).
    """
    stores = contract(numerics, dtype, x, undeclared=EXACT)
    y = np.full((x.shape[0], w.shape[1]), np.nan)
    for expert, rows in _groups(expert_ends):
        b = None if bias is None else decode(bias[expert])
        y[rows] = rounded(linear(decode(x[rows]), decode(w[expert]), b), stores.out)
    return y


def value_and_sigma(
    *,
    x: AnyArray,
    w: ExpertArrays,
    expert_ends: AnyArray,
    bias: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> tuple[Float64, Float64]:
    """The unrounded y and the standard deviation of a kernel's error, both [R, n] float64, NaN beyond the last group.

    V_y = u32^2 K (x^2 . w^2 / 6 + y^2 / 16) + ulp(y)^2/12. numerics: None for an fp32 accumulator stored once.
    """
    stores = contract(numerics, dtype, x, undeclared=Numerics())
    y = np.full((x.shape[0], w.shape[1]), np.nan)
    variance = np.full(y.shape, np.nan)
    for expert, rows in _groups(expert_ends):
        b = None if bias is None else decode(bias[expert])
        a, matrix = decode(x[rows]), decode(w[expert])
        y[rows] = linear(a, matrix, b)
        variance[rows] = linear_variance(a, None, matrix, y[rows]) + store_variance(y[rows], stores.out)
    return y, np.sqrt(variance)


def _groups(expert_ends: AnyArray) -> Iterator[tuple[int, slice]]:
    """(expert, its rows) of every group that has rows."""
    start = 0
    for expert, end in enumerate(int(end) for end in expert_ends):
        if end > start:
            yield expert, slice(start, end)
        start = end
