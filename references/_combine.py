"""The sum over a token's experts, each partial sum rounded as the contract declares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics

from ._stores import KEPT, Estimate, exact_in, rounded, stored


class Summands(NamedTuple):
    """What some (token, slot) pairs add to their tokens' rows. tokens, slots: [n] int. values: [n, H] float64."""

    tokens: AnyArray
    slots: AnyArray
    values: Float64


class EstimatedSummands(NamedTuple):
    """As Summands, with an estimate of [n, H], and the part of its variance that a row shares (see Errors), or None."""

    tokens: AnyArray
    slots: AnyArray
    estimate: Estimate
    shared: Float64 | None


def combine(summands: Iterable[Summands], shape: tuple[int, ...], stores: Numerics) -> Float64:
    """Sum per token, rounded at `combine` after each addition and at `out`. Returns `shape` = [T, H] float64.

    summands: in ascending expert order, which combine_order `expert` keeps; `slot` sorts them. The first addition is
    to 0. `tree` keeps fp32 whatever `combine` says. A token without summands is exactly 0.
    """
    total = np.zeros(shape)
    partial = _partial_format(stores)
    for tokens, slots, values in summands if not _by_slot(stores) else _value_slots(summands):
        for rows in _each_token_once(tokens, slots):
            total[tokens[rows]] = rounded(total[tokens[rows]] + values[rows], partial)
    return rounded(total, stores.out)


def combine_estimates(
    summands: Iterable[EstimatedSummands], shape: tuple[int, ...], stores: Numerics, terms: str, *, flips: bool
) -> tuple[Estimate, Float64]:
    """The estimate of the sum, [T, H]: the terms' own errors and the stores; and the sum of what they share.

    terms: format that the terms were last rounded to. Storing a number in a format that has it adds no error: the first
    addition where `terms` fits `combine`, and `out` where `combine` fits `out`.
    """
    parts = [np.zeros(shape) for _ in range(4 if flips else 2)]  # value, dense, rare, size
    shared = np.zeros(shape)
    started = np.zeros(shape[0], dtype=bool)
    partial = _partial_format(stores)
    first_is_exact = exact_in(terms, partial)
    for tokens, slots, estimate, common in summands if not _by_slot(stores) else _estimate_slots(summands):
        for rows in _each_token_once(tokens, slots):
            t = tokens[rows]
            if common is not None:
                shared[t] += common[rows]
            if partial == "fp32":  # the usual case, in fewer steps
                added = [None if part is None else part[rows] for part in estimate]
                _add_in_fp32(parts, t, Estimate(*added), started[t] if first_is_exact else None)  # type: ignore[arg-type]  # as in estimate
                started[t] = True
                continue
            for part, more in zip(parts, estimate, strict=False):
                if more is not None:
                    part[t] += more[rows]
            rounding = t[started[t]] if first_is_exact else t
            started[t] = True
            if len(rounding):
                after = stored(Estimate(*(part[rounding] for part in parts)), partial)
                for part, new in zip(parts, after, strict=False):
                    if new is not None:
                        part[rounding] = new
    total = Estimate(*parts)
    if not exact_in(partial, stores.out):
        total = stored(total, stores.out)
    for errors in total[1:]:
        if errors is not None:
            errors[~started] = 0.0  # exactly 0 in every kernel
    return total, shared


def _add_in_fp32(parts: list[Float64], t: AnyArray, added: Estimate, rounds: AnyArray | None) -> None:
    """Add to the rows t of parts, in fp32. rounds: [n] bool, the rows whose sum is rounded, None for all."""
    value = parts[0][t] + added.value
    parts[0][t] = value
    rounding = KEPT * np.square(value)
    if rounds is not None:
        rounding *= rounds[:, None]
    parts[1][t] += added.dense + rounding
    for part, more in zip(parts[2:], added[2:], strict=False):
        if more is not None:
            part[t] += more


def _partial_format(stores: Numerics) -> str:
    return "fp32" if stores.combine_order == "tree" else stores.combine


def _by_slot(stores: Numerics) -> bool:
    # only where rounding makes the order matter, for sorting holds all of [T, k, H]
    return stores.combine_order == "slot" and stores.combine != "fp32"


def _each_token_once(tokens: AnyArray, slots: AnyArray) -> Iterator[Any]:
    """Row indices such that no token occurs twice among them: all at once, unless an expert was chosen twice."""
    if len(set(tokens.tolist())) == len(tokens):
        yield slice(None)
        return
    for slot in np.unique(slots):
        yield np.flatnonzero(slots == slot)


def _value_slots(summands: Iterable[Summands]) -> Iterator[Summands]:
    held = list(summands)
    if held:
        tokens, slots, values = (np.concatenate(column) for column in zip(*held, strict=True))
        for slot in np.unique(slots):
            rows = np.flatnonzero(slots == slot)
            yield Summands(tokens[rows], slots[rows], values[rows])


def _estimate_slots(summands: Iterable[EstimatedSummands]) -> Iterator[EstimatedSummands]:
    held = list(summands)
    for slot in np.unique(np.concatenate([np.zeros(0, np.int64), *(item.slots for item in held)])):
        for item in held:
            rows = np.flatnonzero(item.slots == slot)
            if len(rows):
                picked = Estimate(*(None if part is None else part[rows] for part in item.estimate))  # type: ignore[arg-type]  # as in item
                yield EstimatedSummands(
                    item.tokens[rows], item.slots[rows], picked, None if item.shared is None else item.shared[rows]
                )
