"""tokamax' ragged_dot by each of its implementations; on a CPU only XLA's takes calls."""

from __future__ import annotations

from importlib import import_module

import jax
import jax.numpy as jnp

import moecheck

TOKAMAX = import_module("tokamax")
# It reads its flags from the command line of the program that imports it, which has others.
import_module("absl.flags").FLAGS.mark_as_parsed()
TRANSPOSED = moecheck.WeightLayout(transposed=True)


@moecheck.kernel(
    "grouped_gemm",
    backend="jax",
    name="tokamax/ragged_dot_xla",
    dtypes=("bf16", "fp32"),
    numerics=moecheck.Numerics(),
    deterministic=True,
    weight_layout=TRANSPOSED,
)
def ragged_dot_xla(*, x: jax.Array, w: jax.Array, expert_ends: jax.Array) -> jax.Array:
    """jax.lax.ragged_dot behind tokamax' interface. Shapes as in grouped_gemm, w [E, k, n]."""
    return _ragged_dot(x, w, expert_ends, "xla")


@moecheck.kernel(
    "grouped_gemm",
    backend="jax",
    name="tokamax/ragged_dot_triton",
    dtypes=("bf16", "fp16"),
    numerics=moecheck.Numerics(),
    weight_layout=TRANSPOSED,
)
def ragged_dot_triton(*, x: jax.Array, w: jax.Array, expert_ends: jax.Array) -> jax.Array:
    """Its Pallas kernel for Triton. Shapes as above."""
    return _ragged_dot(x, w, expert_ends, "triton")


@moecheck.kernel(
    "grouped_gemm",
    backend="jax",
    name="tokamax/ragged_dot_mosaic",
    dtypes=("bf16", "fp16"),
    numerics=moecheck.Numerics(),
    weight_layout=TRANSPOSED,
)
def ragged_dot_mosaic(*, x: jax.Array, w: jax.Array, expert_ends: jax.Array) -> jax.Array:
    """Its Pallas kernel for Mosaic GPU, on Hopper and Blackwell. Shapes as above."""
    return _ragged_dot(x, w, expert_ends, "mosaic")


def _ragged_dot(x: jax.Array, w: jax.Array, expert_ends: jax.Array, implementation: str) -> jax.Array:
    sizes = jnp.diff(expert_ends, prepend=0).astype(jnp.int32)
    precision = jax.lax.Precision.HIGHEST if implementation == "xla" and x.dtype == jnp.float32 else None
    try:
        out: jax.Array = TOKAMAX.ragged_dot(x, w, sizes, precision=precision, implementation=implementation)
    except NotImplementedError as error:
        raise moecheck.Unsupported(f"tokamax' {implementation} kernel: {error}") from error
    return out
