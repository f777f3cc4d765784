"""Megablox' grouped GEMM for TPUs as jax ships it (jax.experimental.pallas.ops.tpu.megablox)."""

from __future__ import annotations

from importlib import import_module

import jax
import jax.numpy as jnp

import moecheck

from ._pallas import require_tpu

GMM = import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
ROWS, INNER, COLUMNS = 32, 96, 64  # tiles of an interpreted call: small shapes have several, none of them whole
TPU_TILE = 128


@moecheck.kernel(
    "grouped_gemm",
    backend="pallas_tpu",
    name="megablox/gmm",
    dtypes=("bf16", "fp32"),
    numerics=moecheck.Numerics(),
    deterministic=True,
)
def gmm(*, x: jax.Array, w: jax.Array, expert_ends: jax.Array) -> jax.Array:
    """Rows are padded to whole tiles, as its callers do. Shapes as in grouped_gemm; rows past the last group are not
    written.
    """
    require_tpu()
    rows = len(x)
    if not rows or not len(w):
        raise moecheck.Unsupported("megablox takes no empty operands")
    tiles = (TPU_TILE,) * 3 if jax.default_backend() == "tpu" else (ROWS, INNER, COLUMNS)
    padded = jnp.pad(x, ((0, -rows % tiles[0]), (0, 0)))
    sizes = jnp.diff(expert_ends, prepend=0).astype(jnp.int32)
    out: jax.Array = GMM.gmm(padded, w, sizes, x.dtype, tiles, transpose_rhs=True)
    return out[:rows]
