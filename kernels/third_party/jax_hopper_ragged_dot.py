"""jax's example of a grouped GEMM for Hopper, in Pallas for Mosaic GPU (jax.experimental.pallas.ops.gpu)."""

from __future__ import annotations

from importlib import import_module

import jax
import jax.numpy as jnp

import moecheck

from ._pallas import on_gpu

RAGGED_DOT = import_module("jax.experimental.pallas.ops.gpu.ragged_dot_mgpu")
TILE = 64  # rows, columns and terms: the smallest that it is tuned over
DEEP = 128  # columns of a tile where they fit


@moecheck.kernel(
    "grouped_gemm",
    backend="pallas_gpu",
    name="jax/hopper_ragged_dot",
    dtypes=("bf16", "fp16"),
    numerics=moecheck.Numerics(),
    deterministic=True,
    weight_layout=moecheck.WeightLayout(transposed=True),
)
def hopper_ragged_dot(*, x: jax.Array, w: jax.Array, expert_ends: jax.Array) -> jax.Array:
    """Shapes as in grouped_gemm, w [E, k, n], with k and n in whole tiles; rows past the last group are not written."""
    (rows, inner), columns = x.shape, w.shape[2]
    if not rows or inner % TILE or columns % TILE:
        raise moecheck.Unsupported(f"takes rows, and multiples of {TILE} columns and terms, not {columns} and {inner}")
    block = DEEP if columns % DEEP == 0 else TILE
    sizes = jnp.diff(expert_ends, prepend=0).astype(jnp.int32)

    def call() -> jax.Array:
        out: jax.Array = RAGGED_DOT.ragged_dot(
            x,
            w,
            group_sizes=sizes,
            block_m=TILE,
            block_n=block,
            block_k=TILE,
            max_concurrent_steps=2,
            grid_block_n=1,
        )
        return out

    out: jax.Array = on_gpu(call)
    return out
