"""Reference of `unpermute`: each token's expert outputs, weighted and added up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics

from ._combine import Contribution, combine, combine_with_variance
from ._stores import EXACT, contract, decode, rounded, store_variance


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

    def contributions() -> Iterator[Contribution]:
        for token, slot, row in _rows(inv_permuted_idx):
            yield Contribution(token, slot, rounded(scale[token, slot] * decode(permuted[row]), stores.weighted))

    return combine(contributions(), (len(topk_weights), permuted.shape[1]), stores)


def value_and_sigma(
    *,
    permuted: AnyArray,
    topk_weights: AnyArray,
    inv_permuted_idx: AnyArray,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> tuple[Float64, Float64]:
    """The unrounded y and the standard deviation of a kernel's error, both [T, H] float64.

    V_y = sum_s (z^2 V_w + ulp(w z)^2/12) + ulp^2/12 per partial sum + ulp(y)^2/12, V_w = ulp(w)^2/12 if stored low.
    numerics: None for all kept in fp32 but the output. A token without rows has sigma 0: equality is required.
    """
    stores = contract(numerics, dtype, permuted, undeclared=Numerics())
    scale = decode(topk_weights)
    v_scale = np.zeros(scale.shape)
    if stores.topk_weights != "fp32":
        v_scale = store_variance(scale, stores.topk_weights)

    def contributions() -> Iterator[Contribution]:
        for token, slot, row in _rows(inv_permuted_idx):
            z = decode(permuted[row])
            y = scale[token, slot] * z
            variance = np.square(z) * v_scale[token, slot] + store_variance(y, stores.weighted)
            yield Contribution(token, slot, y, variance)

    shape = (len(topk_weights), permuted.shape[1])
    value, variance = combine_with_variance(contributions(), shape, stores, stores.weighted)
    return value, np.sqrt(variance)


def _rows(inv_permuted_idx: AnyArray) -> Iterator[tuple[int, int, int]]:
    """(token, slot, row) of every slot that has a row, in ascending row order."""
    tokens, slots = np.nonzero(inv_permuted_idx >= 0)
    rows = inv_permuted_idx[tokens, slots]
    for i in np.argsort(rows, kind="stable"):
        yield int(tokens[i]), int(slots[i]), int(rows[i])
