"""Full arrays in, full arrays out: shards them over a mesh and runs the fused kernel on every rank."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from moecheck.gate_up import gate_up_rows
from moecheck.quantization import Quantization

from ._fused_kernel import fused_kernel
from ._refs import AXIS, Inputs, Outputs, Plan, Scratch, in_specs, output_shapes, scratch_shapes

COLLECTIVE = 7  # of the barrier's semaphore: any number that no other kernel of the program has
_spec: Any = PartitionSpec  # which jax leaves untyped
BY_RANK, EVERYWHERE = _spec(AXIS), _spec()


class Arrays(NamedTuple):
    """The op's arrays and where its tokens and experts lie.

    rows: [P * T'] int32, the token in each padded row, 0 where there is none. places: [T] int32, the padded row of each
    token. counts: [P] int32. experts: [Q] int32, the logical expert of each physical one. copies: [E] int32. table:
    [E, C] int32, the physical ones of each logical one.
    """

    hidden_states: Any
    router_logits: Any
    correction_bias: Any
    w13: Any
    w2: Any
    w13_bias: Any
    w2_bias: Any
    w13_scale: Any
    w2_scale: Any
    rows: Any
    places: Any
    counts: Any
    experts: Any
    copies: Any
    table: Any


@functools.partial(jax.jit, static_argnames="plan")
def run(arrays: Arrays, *, plan: Plan) -> jax.Array:
    """The layer's output [T, H], without the routed factor where that is on the output. Compiled once per plan."""
    given = prepared(arrays, plan)
    mesh = Mesh(np.array(jax.devices()[: plan.num_ranks]), (AXIS,))
    specs = Inputs(**{name: None if value is None else BY_RANK for name, value in given._asdict().items()})
    specs = specs._replace(copies=EVERYWHERE, places=EVERYWHERE)
    specs = specs._replace(bias=None if given.bias is None else EVERYWHERE)
    shard = jax.shard_map(
        functools.partial(_on_rank, plan), mesh=mesh, in_specs=(specs,), out_specs=BY_RANK, check_vma=False
    )
    hidden = arrays.hidden_states.shape[1]
    out: jax.Array = shard(given)[arrays.places, :hidden]
    return out


def _on_rank(plan: Plan, given: Inputs) -> jax.Array:
    """The rows [T', H'] of one rank."""
    collective = COLLECTIVE if plan.num_ranks > 1 else None
    outputs: Outputs = pl.pallas_call(
        functools.partial(_with_names, plan),
        out_shape=output_shapes(plan),
        in_specs=(in_specs(given),),
        out_specs=Outputs(*[pl.BlockSpec(memory_space=pl.ANY)] * len(Outputs._fields)),
        scratch_shapes=[*scratch_shapes(plan, given.w13.dtype)],
        compiler_params=pltpu.CompilerParams(has_side_effects=True, collective_id=collective),
        name="fused_expert_parallel_moe",
    )(given)
    out: jax.Array = outputs.out
    return out


def _with_names(plan: Plan, given: Inputs, *rest: Any) -> None:
    made, scratch = rest[: len(Outputs._fields)], rest[len(Outputs._fields) :]
    if isinstance(rest[0], Outputs):
        made, scratch = rest[0], rest[1:]
    fused_kernel(plan, given, Outputs(*made), Scratch(*scratch))


def prepared(arrays: Arrays, plan: Plan) -> Inputs:
    """The kernel's inputs for all ranks, in its layout and padded; gate and up as [E, 2, H, I]."""
    hidden, intermediate = arrays.hidden_states.shape[1], arrays.w2.shape[2]
    more_hidden, more_inner = plan.hidden - hidden, plan.intermediate - intermediate
    parts = np.stack(gate_up_rows(plan.spec.experts.gate_up_layout, intermediate))  # [2, I]: rows of gates and of ups
    w13 = jnp.swapaxes(arrays.w13[arrays.experts][:, parts], 2, 3)
    w2 = jnp.swapaxes(arrays.w2[arrays.experts], 1, 2)
    b13, b2 = arrays.w13_bias, arrays.w2_bias
    if b13 is not None:
        b13 = jnp.pad(b13[arrays.experts][:, parts].astype(jnp.float32), ((0, 0), (0, 0), (0, more_inner)))
    if b2 is not None:
        b2 = jnp.pad(b2[arrays.experts][:, None].astype(jnp.float32), ((0, 0), (0, 0), (0, more_hidden)))
    s13, s2 = arrays.w13_scale, arrays.w2_scale
    if s13 is not None:
        each = plan.spec.experts.quantization
        s13 = _each_column(s13[arrays.experts], each, (2 * intermediate, hidden), (plan.hidden, plan.group13))
        s13 = jnp.pad(jnp.swapaxes(s13[:, parts], 2, 3), ((0, 0), (0, 0), (0, 0), (0, more_inner)))
        s2 = _each_column(s2[arrays.experts], each, (hidden, intermediate), (plan.intermediate, plan.group2))
        s2 = jnp.pad(jnp.swapaxes(s2, 1, 2), ((0, 0), (0, 0), (0, more_hidden)))
    bias = arrays.correction_bias
    return Inputs(
        count=arrays.counts,
        copies=arrays.copies,
        places=arrays.table,
        logits=arrays.router_logits[arrays.rows].astype(jnp.float32),
        bias=None if bias is None else bias[None].astype(jnp.float32),
        x=jnp.pad(arrays.hidden_states[arrays.rows], ((0, 0), (0, more_hidden))),
        w13=jnp.pad(w13, ((0, 0), (0, 0), (0, more_hidden), (0, more_inner))),
        w2=jnp.pad(w2, ((0, 0), (0, more_inner), (0, more_hidden))),
        b13=b13,
        b2=b2,
        s13=s13,
        s2=s2,
    )


def _each_column(
    scales: jax.Array, quantization: Quantization | None, shape: tuple[int, int], padded: tuple[int, int]
) -> jax.Array:
    """Scales [E, blocks, blocks] of matrices [rows, columns] = shape as those of each row and each group of columns.

    padded: the columns with padding, and how many of them are a group. Returns [E, rows, groups] float32.
    """
    assert quantization is not None
    rows = np.arange(shape[0]) // (quantization.rows or shape[0])
    starts = np.minimum(np.arange(0, padded[0], padded[1]), shape[1] - 1)
    columns = starts // (quantization.columns or shape[1])
    return scales[:, rows][:, :, columns].astype(jnp.float32)
