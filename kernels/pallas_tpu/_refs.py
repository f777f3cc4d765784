"""What the fused kernel reads, writes and works in, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import moecheck

from ._blocks import Blocks

AXIS = "ranks"  # of the mesh
Ref = Any  # a Pallas reference to an array, or to a part of one
Copy = Any  # a DMA that can be started and waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known when the kernel is compiled.

    tokens: rows of each rank's arrays, padded. experts: logical ones. places: physical ones, of all ranks. hidden,
    intermediate: padded sizes. capacity: rows of an expert's buffer. dtype: of the hidden states. group13, group2: rows
    of w13 and of w2 that share a column's scale in the kernel, 0 for weights that are not quantised.
    """

    num_ranks: int
    tokens: int
    experts: int
    places: int
    hidden: int
    intermediate: int
    capacity: int
    dtype: str
    group13: int
    group2: int
    spec: moecheck.MoESpec
    blocks: Blocks

    @property
    def local(self) -> int:
        """Physical experts of one rank."""
        return self.places // self.num_ranks

    @property
    def top_k(self) -> int:
        return self.spec.routing.top_k


class Inputs(NamedTuple):
    """A rank's own arrays. Optional ones are None.

    count: [1] int32, its tokens. copies: [E] int32 and places: [E, C] int32, the physical experts of each logical one.
    logits: [T, E] float32. bias: [1, E] float32. x: [T, H]. w13: [L, 2, H, I], gates and then ups. w2: [L, I, H].
    b13: [L, 2, I] float32. b2: [L, 1, H] float32. s13: [L, 2, H / g, I] float32, s2: [L, I / g, H] float32, the
    scales of g consecutive rows of a column.
    """

    count: Ref
    copies: Ref
    places: Ref
    logits: Ref
    bias: Ref | None
    x: Ref
    w13: Ref
    w2: Ref
    b13: Ref | None
    b2: Ref | None
    s13: Ref | None
    s2: Ref | None


class Outputs(NamedTuple):
    """out: [T, H]. The others are room that other ranks write into or read from.

    inbox: [2, capacity, H], the rows that came for a local expert, rank after rank, those of experts 0, 2, ... in the
    first half. outbox: the same rows after the expert. returned: [places, T, H], what experts made of this rank's
    tokens.
    """

    out: Ref
    inbox: Ref
    outbox: Ref
    returned: Ref


class Scratch(NamedTuple):
    """Vector and scalar memory and semaphores; double buffers have a first axis of 2.

    places_s, positions_s: [T, top_k], the physical expert of each slot, and which of this rank's rows for that one it
    is. counts_s: [1, places], how many of these there are; all_counts_s: [P, 1, places], of every rank.
    """

    logits: Ref
    bias: Ref
    ids: Ref
    weights: Ref
    counts: Ref
    all_counts: Ref
    x: Ref
    w13: Ref
    w2: Ref
    s13: Ref
    s2: Ref
    b13: Ref
    b2: Ref
    gate_up: Ref
    sums: Ref
    y: Ref
    rows: Ref
    out: Ref
    places_s: Ref
    positions_s: Ref
    counts_s: Ref
    all_counts_s: Ref
    sem_logits: Ref
    sem_local: Ref
    sem_counts: Ref
    sem_counts_sent: Ref
    sem_scattered: Ref
    sem_arrived: Ref
    sem_x: Ref
    sem_w13: Ref
    sem_w2: Ref
    sem_s13: Ref
    sem_s2: Ref
    sem_y: Ref
    sem_sent_back: Ref
    sem_returned: Ref
    sem_rows: Ref
    sem_out: Ref


def output_shapes(plan: Plan) -> Outputs:
    dtype = jnp.dtype(plan.dtype)
    shape: Any = jax.ShapeDtypeStruct  # which jax leaves untyped
    buffer = shape((2, plan.capacity, plan.hidden), dtype)
    return Outputs(
        out=shape((plan.tokens, plan.hidden), dtype),
        inbox=buffer,
        outbox=buffer,
        returned=shape((plan.places, plan.tokens, plan.hidden), dtype),
    )


def scratch_shapes(plan: Plan, weights: Any) -> Scratch:
    """weights: the dtype of w13 and w2."""
    b, k, P, Q = plan.blocks, plan.top_k, plan.num_ranks, plan.places
    dtype, dma = jnp.dtype(plan.dtype), pltpu.SemaphoreType.DMA
    return Scratch(
        logits=pltpu.VMEM((2, b.tokens, plan.experts), jnp.float32),
        bias=pltpu.VMEM((1, plan.experts), jnp.float32),
        ids=pltpu.VMEM((plan.tokens, k), jnp.int32),
        weights=pltpu.VMEM((plan.tokens, k), jnp.float32),
        counts=pltpu.VMEM((1, Q), jnp.int32),
        all_counts=pltpu.VMEM((P, 1, Q), jnp.int32),
        x=pltpu.VMEM((2, b.rows, plan.hidden), dtype),
        w13=pltpu.VMEM((2, 2, b.hidden_in, b.intermediate), weights),
        w2=pltpu.VMEM((2, b.intermediate, b.hidden_out), weights),
        s13=pltpu.VMEM((2, 2, _groups(b.hidden_in, plan.group13), b.intermediate), jnp.float32),
        s2=pltpu.VMEM((2, _groups(b.intermediate, plan.group2), b.hidden_out), jnp.float32),
        b13=pltpu.VMEM((2, plan.intermediate), jnp.float32),
        b2=pltpu.VMEM((1, plan.hidden), jnp.float32),
        gate_up=pltpu.VMEM((2, b.rows, b.intermediate), jnp.float32),
        sums=pltpu.VMEM((b.rows, plan.hidden), jnp.float32),
        y=pltpu.VMEM((2, b.rows, plan.hidden), dtype),
        rows=pltpu.VMEM((2, k, b.tokens, plan.hidden), dtype),
        out=pltpu.VMEM((2, b.tokens, plan.hidden), dtype),
        places_s=pltpu.SMEM((plan.tokens, k), jnp.int32),
        positions_s=pltpu.SMEM((plan.tokens, k), jnp.int32),
        counts_s=pltpu.SMEM((1, Q), jnp.int32),
        all_counts_s=pltpu.SMEM((P, 1, Q), jnp.int32),
        sem_logits=dma((2,)),
        sem_local=dma(()),
        sem_counts=dma((P,)),
        sem_counts_sent=dma(()),
        sem_scattered=dma(()),
        sem_arrived=dma((2,)),
        sem_x=dma((2,)),
        sem_w13=dma((2,)),
        sem_w2=dma((2,)),
        sem_s13=dma((2,)),
        sem_s2=dma((2,)),
        sem_y=dma((2,)),
        sem_sent_back=dma(()),
        sem_returned=dma((Q,)),
        sem_rows=dma((2,)),
        sem_out=dma((2,)),
    )


def _groups(rows: int, group: int) -> int:
    return rows // group if group else 1


def in_specs(inputs: Inputs) -> Inputs:
    """Where each input lies: scalars in scalar memory, arrays in the device's main memory; None stays None."""
    scalars = {"count", "copies", "places"}
    specs = {
        name: None if value is None else pl.BlockSpec(memory_space=pltpu.SMEM if name in scalars else pl.ANY)
        for name, value in inputs._asdict().items()
    }
    return Inputs(**specs)
