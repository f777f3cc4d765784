"""One rank's experts on rows that name them, in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import moecheck

from ._ranks import Placed
from ._stores import stored
from .activation import activated
from .ragged_dot import ragged


def of_rank(place: jax.Array, rank: jax.Array, local: int) -> jax.Array:
    """The expert of each place among a rank's `local` ones, `local` for places of other ranks and -1."""
    return jnp.where((place >= 0) & (place // local == rank), place % local, local)


def expert_rows(rows: jax.Array, ids: jax.Array, experts: Placed, spec: moecheck.ExpertSpec) -> jax.Array:
    """Each row's expert, neither weighted nor stored; 0 for rows without one.

    rows: [R, H]. ids: [R] int32, the number of experts for none. Returns [R, H] float32 in the order of the rows.
    """
    count = len(experts.w13)
    order = jnp.argsort(ids, stable=True)
    sizes = jnp.bincount(ids, length=count + 1)[:count]
    gate_up = ragged(rows[order], experts.w13, sizes)
    if experts.w13_bias is not None:
        gate_up += experts.w13_bias.at[ids[order]].get(mode="clip")
    computed = ragged(stored(activated(gate_up, spec), rows.dtype), experts.w2, sizes)
    if experts.w2_bias is not None:
        computed += experts.w2_bias.at[ids[order]].get(mode="clip")
    computed = jnp.where((ids[order] < count)[:, None], computed, 0)
    return jnp.zeros_like(computed).at[order].set(computed)
