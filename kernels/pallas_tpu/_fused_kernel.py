"""The fused expert-parallel kernel: route, scatter, compute, gather, add up; one program on each rank."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ._choice import choose
from ._exchange import (
    meet,
    rows_of_expert,
    scatter,
    send_back,
    share_counts,
    wait_for_returned,
    wait_for_rows,
    wait_for_scattered,
    wait_for_sent_back,
)
from ._feed_forward import compute_expert
from ._refs import AXIS, Copy, Inputs, Outputs, Plan, Scratch


def fused_kernel(plan: Plan, given: Inputs, made: Outputs, at: Scratch) -> None:
    """Everything that one rank does; it returns when its own tokens are done and nothing of it is under way."""
    rank, count = jax.lax.axis_index(AXIS), given.count[0]
    meet(plan)  # no rank writes into another's memory before that one is here
    route(plan, given, at, count)
    number_slots(plan, given, at, rank, count)
    share_counts(plan, at, rank)
    scatter(plan, given, made, at, rank, count, jnp.int32(0))

    @pl.loop(0, plan.local)
    def _(expert: jax.Array) -> None:
        @pl.when(expert + 1 < plan.local)
        def _() -> None:
            scatter(plan, given, made, at, rank, count, expert + 1)

        arrived = rows_of_expert(plan, at, rank, expert)
        wait_for_rows(made.inbox.at[0, 0], at.sem_arrived.at[jax.lax.rem(expert, 2)], arrived)
        compute_expert(plan, given, made, at, expert, arrived)
        send_back(plan, made, at, rank, expert)
        wait_for_scattered(plan, given, at, rank, expert)
        wait_for_sent_back(plan, made, at, rank, expert)
        meet(plan)  # this half of the inboxes is free on every rank before the next expert but one is scattered

    wait_for_returned(plan, made, at, rank)
    add_up(plan, made, at, count)


def route(plan: Plan, given: Inputs, at: Scratch, count: jax.Array) -> None:
    """Ids and weights of this rank's tokens, tile by tile, the next one's logits under way meanwhile."""
    rows = plan.blocks.tokens
    tiles = pl.cdiv(count, rows)

    def fetch(tile: jax.Array) -> Copy:
        slot = jax.lax.rem(tile, 2)
        return pltpu.make_async_copy(
            given.logits.at[pl.ds(tile * rows, rows)], at.logits.at[slot], at.sem_logits.at[slot]
        )

    if given.bias is not None:
        pltpu.sync_copy(given.bias, at.bias)

    @pl.when(tiles > 0)
    def _() -> None:
        fetch(jnp.int32(0)).start()

    @pl.loop(0, tiles)
    def _(tile: jax.Array) -> None:
        @pl.when(tile + 1 < tiles)
        def _() -> None:
            fetch(tile + 1).start()

        fetch(tile).wait()
        bias = None if given.bias is None else at.bias[...]
        weights, ids = choose(at.logits[jax.lax.rem(tile, 2)], bias, plan.spec.routing)
        at.weights[pl.ds(tile * rows, rows)] = weights
        at.ids[pl.ds(tile * rows, rows)] = ids

    pltpu.sync_copy(at.ids, at.places_s)


def number_slots(plan: Plan, given: Inputs, at: Scratch, rank: jax.Array, count: jax.Array) -> None:
    """A physical expert for each slot, its number among this rank's rows for that one, and how many these are.

    Copies of an expert are taken by turns, another one first on each rank.
    """

    @pl.loop(0, plan.places)
    def _(place: jax.Array) -> None:
        at.counts_s[0, place] = 0

    @pl.loop(0, count)
    def _(token: jax.Array) -> None:
        for slot in range(plan.top_k):
            expert = at.places_s[token, slot]
            place = given.places[expert, jax.lax.rem(token + rank, given.copies[expert])]
            number = at.counts_s[0, place]
            at.places_s[token, slot] = place
            at.positions_s[token, slot] = number
            at.counts_s[0, place] = number + 1


def add_up(plan: Plan, made: Outputs, at: Scratch, count: jax.Array) -> None:
    """The weighted sum of each token's rows in fp32, stored once; the next tile's rows are under way meanwhile."""
    rows, top_k = plan.blocks.tokens, plan.top_k
    tiles = pl.cdiv(count, rows)

    def tokens_of(tile: jax.Array) -> jax.Array:
        return jnp.minimum(rows, count - tile * rows)

    def fetch(tile: jax.Array) -> None:
        slot = jax.lax.rem(tile, 2)

        @pl.loop(0, tokens_of(tile))
        def _(row: jax.Array) -> None:
            token = tile * rows + row
            for k in range(top_k):
                source = made.returned.at[at.places_s[token, k], at.positions_s[token, k]]
                pltpu.make_async_copy(source, at.rows.at[slot, k, row], at.sem_rows.at[slot]).start()

    def store(tile: jax.Array) -> Copy:
        slot = jax.lax.rem(tile, 2)
        return pltpu.make_async_copy(at.out.at[slot], made.out.at[pl.ds(tile * rows, rows)], at.sem_out.at[slot])

    @pl.when(tiles > 0)
    def _() -> None:
        fetch(jnp.int32(0))

    @pl.loop(0, tiles)
    def _(tile: jax.Array) -> None:
        slot = jax.lax.rem(tile, 2)

        @pl.when(tile + 1 < tiles)
        def _() -> None:
            fetch(tile + 1)

        wait_for_rows(at.rows.at[slot, 0, 0], at.sem_rows.at[slot], tokens_of(tile) * top_k)

        @pl.when(tile >= 2)
        def _() -> None:
            store(tile - 2).wait()

        weights = at.weights[pl.ds(tile * rows, rows)]
        total = jnp.zeros((rows, plan.hidden), jnp.float32)
        for k in range(top_k):
            total += weights[:, k : k + 1] * at.rows[slot, k].astype(jnp.float32)
        at.out[slot] = total.astype(at.out.dtype)
        store(tile).start()

    for last in (2, 1):

        @pl.when(tiles >= last)
        def _(last: int = last) -> None:
            store(tiles - last).wait()
