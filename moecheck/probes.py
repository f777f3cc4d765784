"""Values at which activations are read one by one: all finite numbers of a format, or those of a range of it."""

from __future__ import annotations

from functools import lru_cache

import ml_dtypes
import numpy as np

from .formats import AnyArray, Float64, to_float64

# Inside an expert the activation is multiplied by zeros, so it and its square must be finite in every store.
LARGEST = {"fp32": 2.0**15, "bf16": 2.0**15, "fp16": 2.0**7}
# Below it silu is so near to 0 that the model of the second GEMM, whose variances of a row share a scale, cannot tell.
LOWEST = -16.0
SMALLEST = {"fp32": 2.0**-30, "bf16": 2.0**-30, "fp16": 2.0**-14}
EXPONENTS = 5  # ups of the second pass over the gates are powers of two from 2^-4 to 1, of either sign
_STRIDE = 25_931  # prime, about 0.4 of the number of values: any run of probes is spread over the range


@lru_cache(maxsize=8)
def every_value(dtype: str) -> Float64:
    """All finite numbers of bf16 or fp16, as float64; those of bf16 for fp32. In an order that spreads any run."""
    storage: type[np.generic] = np.float16 if dtype == "fp16" else ml_dtypes.bfloat16
    bits: AnyArray = np.arange(1 << 16, dtype=np.uint16)
    values = to_float64(bits.view(storage))
    return _spread(values[np.isfinite(values)])


@lru_cache(maxsize=8)
def moderate_values(dtype: str) -> Float64:
    """The numbers of `every_value` from LOWEST on, between SMALLEST and LARGEST in size, and 0."""
    values = every_value(dtype)
    size = np.abs(values)
    inside = (values >= LOWEST) & (size >= SMALLEST[dtype]) & (size <= LARGEST[dtype])
    kept: Float64 = values[inside | (values == 0)]
    return kept


def gates_and_ups(count: int, dtype: str) -> tuple[Float64, Float64]:
    """Two arrays [count]: every value as a gate with an up of 1, then again with powers of two of either sign.

    None is above 1: a large gate's product would overflow, and a small one's, which a device that flushes subnormal
    numbers takes for 0, would become large enough to count.
    """
    values = every_value(dtype)
    n = np.arange(count)
    gates = values[n % len(values)]
    ups = np.where(n < len(values), 1.0, np.exp2(-(n % EXPONENTS)) * np.where(n % 2, -1.0, 1.0))
    return gates, ups


def gates_of_expert(expert: int, num_experts: int, hidden_size: int, width: int, dtype: str) -> Float64:
    """[width, hidden_size]: column c holds what token c * num_experts + expert reads, if it is one-hot at c.

    Token t reads the probes t * width to (t + 1) * width - 1.
    """
    values = moderate_values(dtype)
    token = expert + num_experts * np.arange(hidden_size)
    gates: Float64 = values[(token[None, :] * width + np.arange(width)[:, None]) % len(values)]
    return gates


def _spread(values: Float64) -> Float64:
    spread: Float64 = values[np.arange(len(values)) * _STRIDE % len(values)]
    return spread
