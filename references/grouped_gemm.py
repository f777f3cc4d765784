"""Reference of `grouped_gemm`: y[g] = x[g] w[g]^T over ragged groups of rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics

from ._errors import Errors, answer, questions
from ._expert import ExpertArrays
from ._row_groups import Group
from ._stores import EXACT, Estimate, biased, contract, decode, exact_linear_estimate, given, linear, rounded, stored

TOGETHER = 48  # rows of several groups estimated at a time


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
    both: bool = False,
) -> Errors:
    """Value and error of a kernel's y. flips: about the reference rounded as in `numerics`, not about the true y.

    both: about the true y, and the other as `about_rounded`.
    V_y as in exact_linear_estimate, + stores. numerics: None for an fp32 accumulator stored once. NaN beyond the last
    group.
    """
    stores = contract(numerics, dtype, x, undeclared=Numerics())
    asked = questions(flips=flips, rows=True, both=both)
    sums = [[np.full((x.shape[0], w.shape[1]), np.nan) for _ in range(4 if q.flips else 2)] for q in asked]
    for rows, groups, experts in _batches(expert_ends, w):
        b = None if bias is None else decode(bias[experts])
        y = exact_linear_estimate(decode(x[rows]), groups, accumulate=stores.accumulate)
        for parts, question in zip(sums, asked, strict=True):
            of_question = stored(biased(given(y, flips=question.flips), b, stores.before_bias), stores.out)
            for part, values in zip(parts, of_question, strict=False):
                if values is not None:
                    part[rows] = values
    return answer([Errors(Estimate(*parts)) for parts in sums])


def _groups(expert_ends: AnyArray) -> Iterator[tuple[int, slice]]:
    """(expert, its rows) of every group that has rows."""
    start = 0
    for expert, end in enumerate(int(end) for end in expert_ends):
        if end > start:
            yield expert, slice(start, end)
        start = end


def _batches(expert_ends: AnyArray, w: ExpertArrays) -> Iterator[tuple[slice, list[Group], npt.NDArray[np.int64]]]:
    """Rows of as many groups as have TOGETHER of them, these groups with rows counted from the first, rows' experts."""
    groups, of_rows = list[Group](), list[int]()
    start = 0
    for expert, rows in _groups(expert_ends):
        if len(of_rows) >= TOGETHER:
            yield slice(start, rows.start), groups, np.array(of_rows)
            groups, of_rows, start = [], [], rows.start
        groups.append(Group(slice(rows.start - start, rows.stop - start), partial(_decoded, w, expert)))
        of_rows += [expert] * (rows.stop - rows.start)
    if groups:
        yield slice(start, start + len(of_rows)), groups, np.array(of_rows)


def _decoded(w: ExpertArrays, expert: int) -> Float64:
    return decode(w[expert])
