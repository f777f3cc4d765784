"""Stores that XLA cannot drop: by default it may keep a value in fp32 across a cast to a narrower dtype and back."""

from __future__ import annotations

from typing import Any

import numpy as np

import jax


def stored(values: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    """float32 values rounded to nearest-even in `dtype`, whatever XLA fuses around.

    The barrier does what lax.reduce_precision cannot: keep subnormal numbers.
    """
    out: jax.Array = jax.lax.optimization_barrier(values.astype(dtype))  # type: ignore[no-untyped-call]  # of jax
    return out
