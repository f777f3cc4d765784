"""What ranks send each other: counts, tokens to their experts, and experts' rows back to the tokens' ranks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ._refs import Copy, Inputs, Outputs, Plan, Ref, Scratch

LOGICAL = pl.DeviceIdType.LOGICAL


def meet(plan: Plan) -> None:
    """Every rank tells all that it is here, and waits for all of them."""
    if plan.num_ranks == 1:
        return
    barrier = pltpu.get_barrier_semaphore()  # type: ignore[no-untyped-call]  # of jax
    for other in range(plan.num_ranks):
        pl.semaphore_signal(barrier, 1, device_id=other, device_id_type=LOGICAL)
    pl.semaphore_wait(barrier, plan.num_ranks)


def share_counts(plan: Plan, at: Scratch, rank: jax.Array) -> None:
    """Every rank learns how many rows each rank has for each physical expert."""
    pltpu.sync_copy(at.counts_s, at.counts)
    pltpu.sync_copy(at.counts, at.all_counts.at[rank])

    def copy(source: jax.Array, to: jax.Array) -> Copy:
        return pltpu.make_async_remote_copy(
            src_ref=at.counts,
            dst_ref=at.all_counts.at[source],
            send_sem=at.sem_counts_sent,
            recv_sem=at.sem_counts.at[source],
            device_id=to,
            device_id_type=LOGICAL,
        )

    for step in range(1, plan.num_ranks):
        copy(rank, jax.lax.rem(rank + step, plan.num_ranks)).start()
    for step in range(1, plan.num_ranks):
        copy(rank, rank).wait_send()
        copy(jax.lax.rem(rank + step, plan.num_ranks), rank).wait_recv()
    pltpu.sync_copy(at.all_counts, at.all_counts_s)


def rows_of_expert(plan: Plan, at: Scratch, rank: jax.Array, expert: jax.Array) -> Any:
    """How many rows of all ranks a local expert gets."""
    return _rows_before(plan, at, plan.num_ranks, rank * plan.local + expert)


def scatter(
    plan: Plan, given: Inputs, made: Outputs, at: Scratch, rank: jax.Array, count: jax.Array, expert: jax.Array
) -> None:
    """Start to send this rank's tokens to one local expert of every rank: one copy for each of their slots there."""
    half = jax.lax.rem(expert, 2)

    @pl.loop(0, count)
    def _(token: jax.Array) -> None:
        for slot in range(plan.top_k):
            place = at.places_s[token, slot]

            @pl.when(jax.lax.rem(place, plan.local) == expert)
            def _(slot: int = slot, place: jax.Array = place) -> None:
                row = _rows_before(plan, at, rank, place) + at.positions_s[token, slot]
                source, target = given.x.at[token], made.inbox.at[half, row]
                to = place // plan.local
                _copy(source, target, at.sem_scattered, at.sem_arrived.at[half], rank=rank, to=to)


def wait_for_scattered(plan: Plan, given: Inputs, at: Scratch, rank: jax.Array, expert: jax.Array) -> None:
    """Wait until as many of this rank's tokens have left as it has for one local expert of every other rank."""

    @pl.loop(0, plan.num_ranks)
    def _(to: jax.Array) -> None:
        @pl.when(to != rank)
        def _() -> None:
            wait_for_rows(given.x.at[0], at.sem_scattered, at.counts_s[0, to * plan.local + expert])


def send_back(plan: Plan, made: Outputs, at: Scratch, rank: jax.Array, expert: jax.Array) -> None:
    """Start to send a local expert's rows to the ranks that their tokens lie on: one copy for each rank."""
    place = rank * plan.local + expert

    @pl.loop(0, plan.num_ranks)
    def _(to: jax.Array) -> None:
        size = at.all_counts_s[to, 0, place]

        @pl.when(size > 0)
        def _() -> None:
            source = made.outbox.at[jax.lax.rem(expert, 2), pl.ds(_rows_before(plan, at, to, place), size)]
            target = made.returned.at[place, pl.ds(0, size)]
            _copy(source, target, at.sem_sent_back, at.sem_returned.at[place], rank=rank, to=to)


def wait_for_returned(plan: Plan, made: Outputs, at: Scratch, rank: jax.Array) -> None:
    """Wait until every row of this rank's tokens is back from other ranks; its own experts' are here already."""

    @pl.loop(0, plan.places)
    def _(place: jax.Array) -> None:
        @pl.when(place // plan.local != rank)
        def _() -> None:
            wait_for_rows(made.returned.at[0, 0], at.sem_returned.at[place], at.counts_s[0, place])


def wait_for_sent_back(plan: Plan, made: Outputs, at: Scratch, rank: jax.Array, expert: jax.Array) -> None:
    """Wait until a local expert's rows have left, those for other ranks and those that stay here."""
    place = rank * plan.local + expert
    own = at.all_counts_s[rank, 0, place]
    wait_for_rows(made.outbox.at[0, 0], at.sem_sent_back, rows_of_expert(plan, at, rank, expert) - own)
    wait_for_rows(made.returned.at[0, 0], at.sem_returned.at[place], own)


def wait_for_rows(row: Ref, semaphore: Ref, count: jax.Array) -> None:
    """Wait until `count` rows of the size of `row` have been copied under a semaphore, which counts bytes."""

    @pl.loop(0, count)
    def _(_: jax.Array) -> None:
        copy: Copy = pltpu.make_async_copy(row, row, semaphore)
        copy.wait()


def _copy(source: Ref, target: Ref, sent: Ref, arrived: Ref, *, rank: jax.Array, to: jax.Array) -> None:
    """Start a copy to `target` on rank `to`; `sent` is signalled here where that is another rank."""

    @pl.when(to == rank)
    def _() -> None:
        pltpu.make_async_copy(source, target, arrived).start()

    @pl.when(to != rank)
    def _() -> None:
        pltpu.make_async_remote_copy(
            src_ref=source, dst_ref=target, send_sem=sent, recv_sem=arrived, device_id=to, device_id_type=LOGICAL
        ).start()


def _rows_before(plan: Plan, at: Scratch, rank: Any, place: Any) -> Any:
    """How many rows the ranks before one have for a physical expert."""
    total = jnp.int32(0)
    for other in range(plan.num_ranks):
        total += jnp.where(other < rank, at.all_counts_s[other, 0, place], 0)
    return total
