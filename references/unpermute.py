"""Reference of `unpermute`: each token's expert outputs, weighted and added up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics

from ._combine import EstimatedSummands, Summands, combine, combine_estimates
from ._errors import Errors, FactorError, answer, questions
from ._stores import EXACT, Estimate, contract, decode, exactly, rounded, stored, stored_unless_kept


def unpermute(
    *,
    permuted: AnyArray,
    topk_weights: AnyArray,
    inv_permuted_idx: AnyArray,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """y_t = sum over slots s with row i = inv_permuted_idx[t, s] >= 0 of topk_weights[t, s] * permuted[i].

    permuted: [R, H] storage dtype. topk_weights: [T, k]. inv_permuted_idx: [T, k] int, -1 = no row.
    Returns [T, H] float64.
    Padding: a slot with index -1 contributes exactly 0; rows that no index names are never read.
    numerics: None for the mathematics; else rounds at topk_weights, weighted, combine in its order (`expert` is the
    order of the rows, which are sorted by expert) and out. Source: vLLM moe_unpermute.
    """
    stores = contract(numerics, dtype, permuted, undeclared=EXACT)
    scale = rounded(decode(topk_weights), stores.topk_weights)

    def summands() -> Iterator[Summands]:
        for tokens, slots, rows in _rows(inv_permuted_idx):
            values = scale[tokens, slots][:, None] * decode(permuted[rows])
            yield Summands(tokens, slots, rounded(values, stores.weighted))

    return combine(summands(), (len(topk_weights), permuted.shape[1]), stores)


def estimate(
    *,
    permuted: AnyArray,
    topk_weights: AnyArray,
    inv_permuted_idx: AnyArray,
    numerics: Numerics | None = None,
    dtype: str | None = None,
    flips: bool = False,
    both: bool = False,
) -> Errors:
    """Value and error of a kernel's y. flips: about the reference rounded as in `numerics`, not about the true y.

    both: about the true y, and the other as `about_rounded`, of which alone sums along a row may be asked.
    V_y = sum_s z^2 V_w + a store of each w z, of each partial sum, and of y; V_w of weights stored low. numerics: None
    for all kept in fp32 but the output. A token without rows has sigma 0: equality is required.
    """
    stores = contract(numerics, dtype, permuted, undeclared=Numerics())
    asked = questions(flips=flips, rows=True, both=both)
    weights = decode(topk_weights)
    scales = [stored_unless_kept(exactly(weights, flips=q.flips), stores.topk_weights) for q in asked]
    shape = (len(topk_weights), permuted.shape[1])
    sources: list[list[FactorError]] = [[] for _ in asked]

    def summands() -> Iterator[list[EstimatedSummands]]:
        for tokens, slots, rows in _rows(inv_permuted_idx):
            z = decode(permuted[rows])
            items = []
            for scale, its, q in zip(scales, sources, asked, strict=True):
                w = Estimate(*(None if part is None else part[tokens, slots][:, None] for part in scale))  # type: ignore[arg-type]  # as in scale
                y, shared = exactly(z * w.value, flips=q.flips), None
                if np.any(w.variance > 0.0):
                    y = w.scaled(z)
                    if q.rows:
                        shared = y.variance
                        its.append(FactorError(rows=tokens, variance=w.variance[:, 0], along=z.astype(np.float32)))
                items.append(EstimatedSummands(tokens, slots, stored(y, stores.weighted), shared))
            yield items

    sums = combine_estimates(summands(), shape, stores, stores.weighted, asked)
    return answer(
        [Errors(y, shared, tuple(its), rows=q.rows) for (y, shared), its, q in zip(sums, sources, asked, strict=True)]
    )


def _rows(inv_permuted_idx: AnyArray) -> Iterator[tuple[AnyArray, AnyArray, AnyArray]]:
    """(tokens, slots, rows): first every token's lowest row, then every token's second, and so on."""
    order = np.argsort(inv_permuted_idx, axis=1, kind="stable")
    for column in order.T:
        rows = np.take_along_axis(inv_permuted_idx, column[:, None], axis=1)[:, 0]
        tokens = np.flatnonzero(rows >= 0)
        if len(tokens):
            yield tokens, column[tokens], rows[tokens]
