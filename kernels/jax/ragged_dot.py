"""Experts by jax.lax.ragged_dot over rows sorted by expert; what the GEMMs accumulate stays in fp32."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import moecheck
from moecheck.numerics import INPUT

from ._stores import stored
from .activation import activated

TRANSPOSED = moecheck.WeightLayout(transposed=True)  # as ragged_dot takes its right side


@moecheck.kernel(
    "grouped_gemm",
    backend="jax",
    name="jax/ragged_dot_gemm",
    numerics=moecheck.Numerics(),
    deterministic=True,
    weight_layout=TRANSPOSED,
)
def grouped_gemm(*, x: jax.Array, w: jax.Array, expert_ends: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """y[g] = x[g] w[g] + bias[g] over ragged groups of rows, stored once; rows past the last group are 0.

    x: [R, k]. w: [E, k, n]. expert_ends: [E] int32, inclusive prefix sums. bias: [E, n]. Returns [R, n].
    """
    y: jax.Array = _grouped_gemm(x, w, expert_ends, bias)
    return y


@moecheck.kernel(
    "fused_experts",
    backend="jax",
    name="jax/ragged_dot",
    numerics=moecheck.Numerics(act_times_up=INPUT),
    deterministic=True,
    weight_layout=TRANSPOSED,
)
def fused_experts(
    *,
    hidden_states: jax.Array,
    w13: jax.Array,
    w2: jax.Array,
    topk_weights: jax.Array,
    topk_ids: jax.Array,
    w13_bias: jax.Array | None = None,
    w2_bias: jax.Array | None = None,
    expert_map: jax.Array | None = None,
    spec: moecheck.ExpertSpec,
) -> jax.Array:
    """The weighted sum of each token's experts; ids that are -1 or map to -1 add nothing.

    hidden_states: [T, H]. w13: [L, H, 2I or I]. w2: [L, I, H]. topk_weights: [T, top_k] float32.
    topk_ids: [T, top_k] int32. w13_bias: [L, 2I or I]. w2_bias: [L, H]. expert_map: [E] int32, global to local id.
    Returns [T, H]. Compiled once per spec and shapes.
    """
    out: jax.Array = _fused_experts(
        hidden_states, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, expert_map, spec=spec
    )
    return out


def local_ids(topk_ids: jax.Array, expert_map: jax.Array | None, *, absent: int) -> jax.Array:
    """Local expert of each slot, `absent` where it has none: [T * top_k] int32."""
    local = topk_ids if expert_map is None else jnp.where(topk_ids >= 0, expert_map[topk_ids], -1)
    return jnp.where(local >= 0, local, absent).ravel()


@jax.jit
def _grouped_gemm(x: jax.Array, w: jax.Array, expert_ends: jax.Array, bias: jax.Array | None) -> jax.Array:
    row = jnp.arange(len(x))
    y = ragged(x, w, jnp.diff(expert_ends, prepend=0))
    if bias is not None:
        group = jnp.searchsorted(expert_ends, row, side="right")
        y = jnp.where((row < expert_ends[-1])[:, None], y + bias.at[group].get(mode="clip"), 0)
    return stored(y, x.dtype)


@functools.partial(jax.jit, static_argnames="spec")
def _fused_experts(
    hidden_states: jax.Array,
    w13: jax.Array,
    w2: jax.Array,
    topk_weights: jax.Array,
    topk_ids: jax.Array,
    w13_bias: jax.Array | None,
    w2_bias: jax.Array | None,
    expert_map: jax.Array | None,
    *,
    spec: moecheck.ExpertSpec,
) -> jax.Array:
    (tokens, top_k), experts, dtype = topk_ids.shape, len(w13), hidden_states.dtype
    ids = local_ids(topk_ids, expert_map, absent=experts)
    order = jnp.argsort(ids, stable=True)  # slots without an expert go last
    ids, weights = ids[order], topk_weights.ravel()[order, None]
    sizes = jnp.bincount(ids, length=experts + 1)[:experts]

    rows = hidden_states[order // top_k]
    if spec.weight_on_input:
        rows, w13, weights = rows * weights, w13.astype(jnp.float32), jnp.ones_like(weights)
    gate_up = ragged(rows, w13, sizes)
    if w13_bias is not None:
        gate_up += w13_bias.at[ids].get(mode="clip")
    per_expert = ragged(stored(activated(gate_up, spec), dtype), w2, sizes)
    if w2_bias is not None:
        per_expert += w2_bias.at[ids].get(mode="clip")
    weighted = jnp.where((ids < experts)[:, None], weights * per_expert, 0)
    slots = jnp.zeros_like(weighted).at[order].set(weighted)
    return stored(slots.reshape(tokens, top_k, w2.shape[2]).sum(axis=1), dtype)


def ragged(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """x[g] w[g] with fp32 products and sums on every backend; rows past sum(sizes) are 0. Returns [R, n] float32."""
    if len(x) == 0:
        return jnp.zeros((0, w.shape[2]), jnp.float32)
    return jax.lax.ragged_dot(
        x,
        w,
        sizes.astype(jnp.int32),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
