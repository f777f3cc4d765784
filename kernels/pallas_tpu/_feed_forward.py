"""One expert on the rows that came for it: gate and up, activation, down, by double-buffered tiles of weights."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..jax.activation import activated
from ._refs import Copy, Inputs, Outputs, Plan, Scratch

Copies = list[Copy]


def compute_expert(
    plan: Plan, given: Inputs, made: Outputs, at: Scratch, expert: jax.Array, arrived: jax.Array
) -> None:
    """Write a local expert's output rows into the outbox, in the order of the inbox; done when it returns.

    arrived: how many rows there are. The last tile of rows has some that nobody sent, and nobody reads what becomes of
    them.
    """
    rows, half = plan.blocks.rows, jax.lax.rem(expert, 2)
    tiles = pl.cdiv(arrived, rows)

    def fetch(tile: jax.Array) -> Copy:
        slot = jax.lax.rem(tile, 2)
        return pltpu.make_async_copy(made.inbox.at[half, pl.ds(tile * rows, rows)], at.x.at[slot], at.sem_x.at[slot])

    def store(tile: jax.Array) -> Copy:
        slot = jax.lax.rem(tile, 2)
        return pltpu.make_async_copy(at.y.at[slot], made.outbox.at[half, pl.ds(tile * rows, rows)], at.sem_y.at[slot])

    @pl.when(tiles > 0)
    def _() -> None:
        fetch(jnp.int32(0)).start()
        if given.b13 is not None:
            pltpu.sync_copy(given.b13.at[expert], at.b13)
        if given.b2 is not None:
            pltpu.sync_copy(given.b2.at[expert], at.b2)

    @pl.loop(0, tiles)
    def _(tile: jax.Array) -> None:
        slot = jax.lax.rem(tile, 2)

        @pl.when(tile + 1 < tiles)
        def _() -> None:
            fetch(tile + 1).start()

        fetch(tile).wait()
        _feed_forward(plan, given, at, expert, slot)

        @pl.when(tile >= 2)
        def _() -> None:
            store(tile - 2).wait()

        y = at.sums[...] if given.b2 is None else at.sums[...] + at.b2[...]
        at.y[slot] = y.astype(at.y.dtype)
        store(tile).start()

    for last in (2, 1):

        @pl.when(tiles >= last)
        def _(last: int = last) -> None:
            store(tiles - last).wait()


def _feed_forward(plan: Plan, given: Inputs, at: Scratch, expert: jax.Array, slot: jax.Array) -> None:
    """at.sums = W2 f(W13 x) for the rows in at.x[slot]; while a tile of weights is used, the next one is under way."""
    b = plan.blocks
    inner, ins, outs = plan.intermediate // b.intermediate, plan.hidden // b.hidden_in, plan.hidden // b.hidden_out

    def first(step: jax.Array) -> Copies:
        """Tile `step` of w13, with its scales: hidden rows fastest."""
        f, d, buffer = step // ins, jax.lax.rem(step, ins), jax.lax.rem(step, 2)
        columns = pl.ds(f * b.intermediate, b.intermediate)
        tile = given.w13.at[expert, :, pl.ds(d * b.hidden_in, b.hidden_in), pl.ds(f * b.intermediate, b.intermediate)]
        copies = [pltpu.make_async_copy(tile, at.w13.at[buffer], at.sem_w13.at[buffer])]
        if given.s13 is not None:
            groups = at.s13.shape[2]
            scales = given.s13.at[expert, :, pl.ds(d * groups, groups), columns]
            copies.append(pltpu.make_async_copy(scales, at.s13.at[buffer], at.sem_s13.at[buffer]))
        return copies

    def second(step: jax.Array) -> Copies:
        """Tile `step` of w2, with its scales: hidden columns fastest."""
        f, d, buffer = step // outs, jax.lax.rem(step, outs), jax.lax.rem(step, 2)
        columns = pl.ds(d * b.hidden_out, b.hidden_out)
        tile = given.w2.at[expert, pl.ds(f * b.intermediate, b.intermediate), pl.ds(d * b.hidden_out, b.hidden_out)]
        copies = [pltpu.make_async_copy(tile, at.w2.at[buffer], at.sem_w2.at[buffer])]
        if given.s2 is not None:
            groups = at.s2.shape[1]
            scales = given.s2.at[expert, pl.ds(f * groups, groups), columns]
            copies.append(pltpu.make_async_copy(scales, at.s2.at[buffer], at.sem_s2.at[buffer]))
        return copies

    _start(first(jnp.int32(0)))
    _start(second(jnp.int32(0)))
    at.sums[...] = jnp.zeros_like(at.sums)

    @pl.loop(0, inner)
    def _(f: jax.Array) -> None:
        at.gate_up[...] = jnp.zeros_like(at.gate_up)

        @pl.loop(0, ins)
        def _(d: jax.Array) -> None:
            step = f * ins + d

            @pl.when(step + 1 < inner * ins)
            def _() -> None:
                _start(first(step + 1))

            _wait(first(step))
            x = at.x[slot, :, pl.ds(d * b.hidden_in, b.hidden_in)]
            buffer = jax.lax.rem(step, 2)
            for part in range(2):
                scales = None if given.s13 is None else at.s13[buffer, part]
                at.gate_up[part] += _product(x, at.w13[buffer, part], scales)

        h = _activation(plan, given, at, f).astype(at.x.dtype)

        @pl.loop(0, outs)
        def _(d: jax.Array) -> None:
            step = f * outs + d

            @pl.when(step + 1 < inner * outs)
            def _() -> None:
                _start(second(step + 1))

            _wait(second(step))
            buffer = jax.lax.rem(step, 2)
            scales = None if given.s2 is None else at.s2[buffer]
            at.sums[:, pl.ds(d * b.hidden_out, b.hidden_out)] += _product(h, at.w2[buffer], scales)


def _activation(plan: Plan, given: Inputs, at: Scratch, f: jax.Array) -> jax.Array:
    """f(gate, up) of one tile of columns, in fp32."""
    gate, up = at.gate_up[0], at.gate_up[1]
    if given.b13 is not None:
        columns = pl.ds(f * plan.blocks.intermediate, plan.blocks.intermediate)
        gate, up = gate + at.b13[0:1, columns], up + at.b13[1:2, columns]
    halves = replace(plan.spec.experts, gate_up_layout="halves")
    return activated(jnp.concatenate([gate, up], axis=1), halves)


def _product(x: jax.Array, w: jax.Array, scales: jax.Array | None) -> jax.Array:
    """The product x w with fp32 sums. scales: [groups, columns], each of so many rows of w; None for w as it is."""
    if scales is not None:
        groups, columns = scales.shape
        w = (w.astype(jnp.float32).reshape(groups, -1, columns) * scales[:, None]).reshape(w.shape)
        x = x.astype(jnp.float32)
    return jnp.dot(x, w, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)


def _start(copies: Copies) -> None:
    for copy in copies:
        copy.start()


def _wait(copies: Copies) -> None:
    for copy in copies:
        copy.wait()
