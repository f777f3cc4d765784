"""The sum over a token's experts, each partial sum rounded as the contract declares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics

from ._errors import Question
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
    for tokens, _, values in summands if not _by_slot(stores) else _value_slots(summands):
        for rows in _each_token_once(tokens):
            total[tokens[rows]] = rounded(total[tokens[rows]] + values[rows], partial)
    return rounded(total, stores.out)


def combine_estimates(
    summands: Iterable[Sequence[EstimatedSummands]],
    shape: tuple[int, ...],
    stores: Numerics,
    terms: str,
    asked: Sequence[Question],
) -> list[tuple[Estimate, Float64 | None]]:
    """For each question the estimate of the sum, [T, H]: the terms' own errors and the stores; and the sum of what they
    share, None where rows are not asked for.

    summands: answers to every question. terms: format that the terms were last rounded to. Storing a number in a format
    that has it adds no error: the first addition where `terms` fits `combine`, and `out` where `combine` fits `out`.
    """
    sums = [_Sum(shape, stores, terms, question) for question in asked]
    if _by_slot(stores):
        held = list(summands)
        for i, one in enumerate(sums):
            for item in _estimate_slots([items[i] for items in held]):
                one.add(item)
    else:
        for items in summands:
            for one, item in zip(sums, items, strict=True):
                one.add(item)
    return [one.finished() for one in sums]


class _Sum:
    """A sum per token that grows."""

    def __init__(self, shape: tuple[int, ...], stores: Numerics, terms: str, question: Question) -> None:
        self._parts = [np.zeros(shape) for _ in range(4 if question.flips else 2)]  # value, dense, rare, size
        self._shared = np.zeros(shape) if question.rows else None
        self._started = np.zeros(shape[0], dtype=bool)
        self._partial, self._out = _partial_format(stores), stores.out
        self._first_is_exact = exact_in(terms, self._partial)

    def add(self, item: EstimatedSummands) -> None:
        for rows in _each_token_once(item.tokens):
            t: Any = item.tokens[rows]
            if len(t) == len(self._started) and np.all(t[:-1] < t[1:]):
                t = slice(None)  # the same, without copies
            if self._shared is not None and item.shared is not None:
                self._shared[t] += item.shared[rows]
            for part, more in zip(self._parts, item.estimate, strict=False):
                if more is not None:
                    part[t] += more[rows]
            rounds = self._started[t] if self._first_is_exact else np.ones(len(item.tokens[rows]), dtype=bool)
            if np.any(rounds):
                self._round(np.arange(len(self._started))[t][rounds] if not np.all(rounds) else t)
            self._started[t] = True

    def _round(self, t: Any) -> None:
        """Round the partial sums of tokens t."""
        if self._partial == "fp32":  # the usual case, in fewer steps
            value, dense = self._parts[:2]
            dense[t] += KEPT * np.square(value[t])
            return
        after = stored(Estimate(*(part[t] for part in self._parts)), self._partial)
        for part, new in zip(self._parts, after, strict=False):
            if new is not None:
                part[t] = new

    def finished(self) -> tuple[Estimate, Float64 | None]:
        total = Estimate(*self._parts)
        if not exact_in(self._partial, self._out):
            total = stored(total, self._out)
        for errors in total[1:]:
            if errors is not None:
                errors[~self._started] = 0.0  # exactly 0 in every kernel
        return total, self._shared


def _partial_format(stores: Numerics) -> str:
    return stores.combine if stores.combine_order in ("slot", "expert") else "fp32"


def _by_slot(stores: Numerics) -> bool:
    # only where rounding makes the order matter, for sorting holds all of [T, k, H]
    return stores.combine_order == "slot" and stores.combine != "fp32"


def _each_token_once(tokens: AnyArray) -> Iterator[Any]:
    """Row indices such that no token occurs twice among them, its rows in their order: all at once where none does."""
    if len(set(tokens.tolist())) == len(tokens):
        yield slice(None)
        return
    order = np.argsort(tokens, kind="stable")
    first = np.searchsorted(tokens[order], tokens[order])  # of the token's rows in this order
    occurrence = np.empty(len(tokens), np.int64)
    occurrence[order] = np.arange(len(tokens)) - first
    for number in range(int(occurrence.max()) + 1):
        yield np.flatnonzero(occurrence == number)


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
