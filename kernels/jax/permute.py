"""Gather rows by expert and add them up again, in JAX."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import moecheck

from ._stores import stored
from .ragged_dot import local_ids


@moecheck.kernel("permute", backend="jax", name="jax/permute", deterministic=True)
def permute(
    *, hidden_states: jax.Array, topk_ids: jax.Array, num_experts: int, expert_map: jax.Array | None = None
) -> tuple[jax.Array, None, jax.Array, jax.Array]:
    """Rows by a stable sort of the slots by local expert; slots without an expert go last.

    hidden_states: [T, H]. topk_ids: [T, top_k] int32. expert_map: [E] int32. Returns permuted [T*top_k, H], None,
    expert_starts [L+1] int32 and inv_permuted_idx [T, top_k] int32, -1 for a slot without an expert.
    """
    # The number of local experts is a shape, so it is read before tracing.
    experts = num_experts if expert_map is None else int((expert_map >= 0).sum())
    permuted, starts, inverse = _permute(hidden_states, topk_ids, expert_map, experts=experts)
    return permuted, None, starts, inverse


@moecheck.kernel("unpermute", backend="jax", name="jax/unpermute", numerics=moecheck.Numerics(), deterministic=True)
def unpermute(*, permuted: jax.Array, topk_weights: jax.Array, inv_permuted_idx: jax.Array) -> jax.Array:
    """Each token's rows, weighted and added in fp32; negative indices add nothing.

    permuted: [R, H]. topk_weights: [T, top_k] float32. inv_permuted_idx: [T, top_k] int32. Returns [T, H].
    """
    out: jax.Array = _unpermute(permuted, topk_weights, inv_permuted_idx)
    return out


@functools.partial(jax.jit, static_argnames="experts")
def _permute(
    hidden_states: jax.Array, topk_ids: jax.Array, expert_map: jax.Array | None, *, experts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    ids = local_ids(topk_ids, expert_map, absent=experts)
    order = jnp.argsort(ids, stable=True)
    row = jnp.where(ids[order] < experts, jnp.arange(len(ids)), -1)
    inverse = jnp.zeros_like(ids).at[order].set(row.astype(ids.dtype)).reshape(topk_ids.shape)
    starts = jnp.searchsorted(ids[order], jnp.arange(experts + 1))
    return hidden_states[order // topk_ids.shape[1]], starts.astype(jnp.int32), inverse


@jax.jit
def _unpermute(permuted: jax.Array, topk_weights: jax.Array, inv_permuted_idx: jax.Array) -> jax.Array:
    rows = permuted.at[inv_permuted_idx].get(mode="fill", fill_value=0).astype(jnp.float32)
    rows = jnp.where((inv_permuted_idx >= 0)[..., None], rows, 0)  # .at counts negative indices from the end
    return stored((rows * topk_weights[..., None]).sum(axis=1), permuted.dtype)
