"""The sum over a token's experts, each partial sum rounded as the contract declares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from moecheck.formats import Float64
from moecheck.numerics import Numerics

from ._stores import exact_in, rounded, store_variance


class Contribution(NamedTuple):
    """What one (token, slot) adds to its token's row. value, variance: [H] float64; no variance in a value pass."""

    token: int
    slot: int
    value: Float64
    variance: Float64 | None = None


def combine(contributions: Iterable[Contribution], shape: tuple[int, ...], stores: Numerics) -> Float64:
    """Sum per token, rounded at `combine` after each addition and at `out`. Returns `shape` = [T, H] float64.

    contributions: in ascending expert order, which combine_order `expert` keeps; `slot` sorts them. The first addition
    is to 0. `tree` keeps fp32 whatever `combine` says. A token without contributions is exactly 0.
    """
    total = np.zeros(shape)
    partial = _partial_format(stores)
    for item in _ordered(contributions, stores):
        row = total[item.token]
        row += item.value
        if partial != "fp32":
            row[:] = rounded(row, partial)
    return rounded(total, stores.out)


def combine_with_variance(
    contributions: Iterable[Contribution], shape: tuple[int, ...], stores: Numerics, terms: str
) -> tuple[Float64, Float64]:
    """Unrounded sum and its variance, both [T, H]: the terms' own, + ulp(partial sum)^2/12 per addition, + ulp(y)^2/12.

    terms: format that the terms were last rounded to. Storing a number in a format that has it adds no error: the first
    addition where `terms` fits `combine`, and `out` where `combine` fits `out`.
    """
    total, variance = np.zeros(shape), np.zeros(shape)
    started = np.zeros(shape[0], dtype=bool)
    partial = _partial_format(stores)
    for item in _ordered(contributions, stores):
        total[item.token] += item.value
        if item.variance is not None:
            variance[item.token] += item.variance
        if started[item.token] or not exact_in(terms, partial):
            variance[item.token] += store_variance(total[item.token], partial)
        started[item.token] = True
    if not exact_in(partial, stores.out):
        variance += store_variance(total, stores.out)
    variance[~started] = 0.0  # exactly 0 in every kernel
    return total, variance


def _partial_format(stores: Numerics) -> str:
    return "fp32" if stores.combine_order == "tree" else stores.combine


def _ordered(contributions: Iterable[Contribution], stores: Numerics) -> Iterable[Contribution]:
    # only where rounding makes the order matter, for sorting holds all of [T, k, H]
    if stores.combine_order == "slot" and stores.combine != "fp32":
        return sorted(contributions, key=lambda item: item.slot)
    return contributions
