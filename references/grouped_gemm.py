"""Reference of `grouped_gemm`: y[g] = x[g] w[g]^T over ragged groups of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics

from ._errors import Errors
from ._expert import ExpertArrays
from ._stores import EXACT, Estimate, biased, contract, decode, exactly, linear, linear_estimate, rounded, stored


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
    group. bias: [E, n]. Returns [R, n] float64. numerics: None for the mathematics; else rounds at
    `before_bias` and `out`.
    Unspecified region: rows expert_ends[-1] and above; the reference leaves NaN.
    Source: torch.nn.functional.grouped_mm (offs); Gale et al. 2022, MegaBlocks (arXiv:2211.15841).
    """
    stores = contract(numerics, dtype, x, undeclared=EXACT)
    y = np.full((x.shape[0], w.shape[1]), np.nan)
    for expert, rows in _groups(expert_ends):
        b = None if bias is None else decode(bias[expert])
        y[rows] = rounded(linear(decode(x[rows]), decode(w[expert]), b, before_bias=stores.before_bias), stores.out)
    return y


def estimate(
    *,
    x: AnyArray,
    w: ExpertArrays,
    expert_ends: AnyArray,
    bias: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
    flips: bool = False,
) -> Errors:
    """Value and error of a kernel's y. flips: about the reference rounded as in `numerics`, not about the true y.

    V_y as in linear_estimate, + stores. numerics: None for an fp32 accumulator stored once. NaN beyond
    the last group.
    """
    stores = contract(numerics, dtype, x, undeclared=Numerics())
    parts = [np.full((x.shape[0], w.shape[1]), np.nan) for _ in range(4 if flips else 2)]
    for expert, rows in _groups(expert_ends):
        b = None if bias is None else decode(bias[expert])
        given = exactly(decode(x[rows]), flips=flips)
        y = linear_estimate(given, decode(w[expert]), exact_input=True, accumulate=stores.accumulate)
        for part, values in zip(parts, stored(biased(y, b, stores.before_bias), stores.out), strict=False):
            if values is not None:
                part[rows] = values
    return Errors(Estimate(*parts))


def _groups(expert_ends: AnyArray) -> Iterator[tuple[int, slice]]:
    """(expert, its rows) of every group that has rows."""
    start = 0
    for expert, end in enumerate(int(end) for end in expert_ends):
        if end > start:
            yield expert, slice(start, end)
        start = end
