"""Which rank has which tokens and experts, as the arrays of a JAX mesh."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import jax
import jax.numpy as jnp
import moecheck
from jax.sharding import Mesh
from moecheck.placement import replicas_of

AXIS = "expert"


class Placed(NamedTuple):
    """The weights of each place, place by place: w13 [Q, H, 2I or I], w2 [Q, I, H] and biases."""

    w13: jax.Array
    w2: jax.Array
    w13_bias: jax.Array | None
    w2_bias: jax.Array | None


def mesh_of(num_ranks: int) -> Mesh:
    """A mesh of one axis over the first devices. Raises Unsupported where there are fewer."""
    devices = jax.devices()
    if len(devices) < num_ranks:
        raise moecheck.Unsupported(f"needs {num_ranks} devices, has {len(devices)}")
    return Mesh(np.array(devices[:num_ranks]), (AXIS,))


def placed(
    w13: jax.Array, w2: jax.Array, w13_bias: jax.Array | None, w2_bias: jax.Array | None, placement: jax.Array | None
) -> Placed:
    """The weights of experts 0, 1, ..., or of a placement [Q]."""
    arrays = (w13, w2, w13_bias, w2_bias)
    if placement is None:
        return Placed(*arrays)
    return Placed(*(None if array is None else array[placement] for array in arrays))  # type: ignore[arg-type]  # as given


def physical_of(placement: jax.Array | None, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """The places [E, most copies] int32 of each expert, and how many it has [E] int32."""
    logical = np.arange(num_experts) if placement is None else np.asarray(placement)
    replicas = replicas_of(logical, num_experts)
    return jnp.asarray(replicas.physical), jnp.asarray(replicas.counts)


def tokens_of_ranks(num_tokens: int, num_ranks: int, rank_tokens: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Which token each row is, [num_ranks * t] int32, num_tokens for rows that fill up a rank; and which rows count.

    t: the tokens of the rank with most of them, one at least. Ranks share evenly without rank_tokens.
    """
    shares = [num_tokens // num_ranks + (rank < num_tokens % num_ranks) for rank in range(num_ranks)]
    counts = np.asarray(shares if rank_tokens is None else rank_tokens)
    starts, most = np.cumsum(counts) - counts, max(1, int(counts.max()))
    row = np.arange(most)[None, :]
    token = np.where(row < counts[:, None], starts[:, None] + row, num_tokens).ravel()
    return jnp.asarray(token, jnp.int32), jnp.asarray(token < num_tokens)
