"""Simulated kernels: no noise where fp32 sums are exact in any order, and noise elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.formats import Float64
from moecheck.numerics import Numerics
from moecheck.references._variants import Noise, _sums_are_exact, products_with_errors
from moecheck.references.quantize_blocks import dequantize_blocks, quantize_blocks_e8m0


def fp4(seed: int, rows: int, width: int, span: int) -> Float64:
    """Numbers of e2m1 in groups of 32 whose sizes are up to 2^span apart."""
    rng = np.random.default_rng(seed)
    size = np.exp2(rng.integers(0, span + 1, (rows, width // 32)))
    x = rng.normal(size=(rows, width)) * np.repeat(size, 32, axis=1)
    codes, scales = quantize_blocks_e8m0(x, "fp4_e2m1", (1, 32), "floor")
    return dequantize_blocks(codes, scales, "fp4_e2m1", (1, 32))


@pytest.mark.parametrize("span", [0, 3, 6, 9])
def test_sums_that_are_called_exact_are_so_in_any_order(span: int) -> None:
    x, w = fp4(1, 6, 320, span), fp4(2, 8, 320, span)
    exact = _sums_are_exact(x, w)
    assert exact.any() or span == 9
    whole = x @ w.T
    rng = np.random.default_rng(3)
    for _ in range(5):
        order = rng.permutation(320)
        for n, m in zip(*np.nonzero(exact), strict=True):
            total = np.float32(0.0)
            for k in order:
                total = np.float32(total + np.float32(x[n, k]) * np.float32(w[m, k]))
            assert float(total) == whole[n, m]


def test_sums_of_many_bits_are_not_called_exact() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4, 64)).astype(np.float32).astype(np.float64)
    assert not _sums_are_exact(x, x).any()
    assert not _sums_are_exact(np.full((1, 2), np.nan), np.ones((1, 2))).any()


def test_noise_is_left_out_where_sums_are_exact_only() -> None:
    noise = Noise(3, lambda shape: np.random.default_rng(5).normal(size=shape))
    x, w = fp4(1, 6, 320, 0), fp4(2, 8, 320, 0)
    assert np.array_equal(products_with_errors(x, w, Numerics(), noise), np.broadcast_to(x @ w.T, (3, 6, 8)))
    truncating = Numerics(accumulate="tensor-core-truncating")
    assert np.all(products_with_errors(x, w, truncating, noise) != x @ w.T)
    many = np.random.default_rng(6).normal(size=(6, 320))
    assert np.all(products_with_errors(many, w, Numerics(), noise) != many @ w.T)
