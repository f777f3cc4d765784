"""Quantising matrices: blocks against a plain loop in fp32, exact dequantisation, zero points, nvfp4 and its layout."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from moecheck.elements import ELEMENTS
from moecheck.references.quantize_blocks import (
    PER_ROW,
    PER_TENSOR,
    TILE_1X128,
    TILE_128X128,
    dequantize_blocks,
    quantize_blocks,
    quantize_blocks_e8m0,
    quantize_blocks_static,
    quantize_blocks_with_zeros,
)
from moecheck.references.quantize_elements import decode
from moecheck.references.quantize_nvfp4 import dequantize_nvfp4, quantize_nvfp4
from moecheck.references.quantize_scales import e8m0_decode
from moecheck.references.swizzle_scales import swizzle_scales, unswizzle_scales

F32 = np.float32
BLOCKS = [PER_TENSOR, PER_ROW, (0, 1), TILE_1X128, TILE_128X128, (1, 32), (1, 64), (3, 40)]
FP8 = {"fp8_e4m3fn": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}


def matrix(rows: int = 150, columns: int = 200) -> npt.NDArray[np.float64]:
    """fp32 numbers of many sizes, in a matrix that no block divides."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(rows, columns)) * np.exp2(rng.integers(-3, 4, (rows, columns)))
    return x.astype(F32).astype(np.float64)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("name", FP8)
def test_blocks_are_quantised_as_a_plain_loop_does(name: str, block: tuple[int, int]) -> None:
    x = matrix()
    rows, columns = block[0] or 150, block[1] or 200
    q = quantize_blocks(x, name, block)
    assert q.scales.shape == (-(-150 // rows), -(-200 // columns))
    for i, j in np.ndindex(q.scales.shape):
        part = x[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].astype(F32)
        scale = np.abs(part).max() / F32(ELEMENTS[name].max_value)
        assert q.scales[i, j] == scale
        limit = F32(ELEMENTS[name].max_value)
        wanted = np.clip(part / scale, -limit, limit).astype(FP8[name]).view(np.uint8)
        assert np.array_equal(q.codes[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns], wanted)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_dequantisation_is_exact(block: tuple[int, int]) -> None:
    x = matrix(20, 140)
    q = quantize_blocks(x, "fp8_e4m3fn", block)
    values = dequantize_blocks(q.codes, q.scales, "fp8_e4m3fn", block)
    rows, columns = block[0] or 20, block[1] or 140
    for n, k in np.ndindex(x.shape):
        exact = Fraction(float(decode(q.codes[n, k], "fp8_e4m3fn"))) * Fraction(
            float(q.scales[n // rows, k // columns])
        )
        assert Fraction(float(values[n, k])) == exact


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("name", ["fp8_e4m3fn", "int8", "uint4b8", "fp4_e2m1"])
def test_the_error_is_half_a_step_of_the_block(name: str, block: tuple[int, int]) -> None:
    x = matrix()
    q = quantize_blocks(x, name, block)
    values = dequantize_blocks(q.codes, q.scales, name, block)
    again = quantize_blocks_static(values, name, 1.0).shape
    assert again == x.shape
    scale = dequantize_blocks(np.ones_like(q.codes), q.scales, "int8", block)
    # half the widest distance of neighbours, and the rounding of the quotient in fp32
    widest = {"fp8_e4m3fn": 32.0, "int8": 1.0, "uint4b8": 1.0, "fp4_e2m1": 2.0}[name]
    assert np.all(np.abs(values - x) <= scale * (widest / 2.0) * (1.0 + 2.0**-16))


def test_zeros_stay_zero_and_their_scale_is_positive() -> None:
    q = quantize_blocks(np.zeros((4, 8)), "fp8_e4m3fn", (1, 4))
    assert np.all(q.scales > 0)
    assert np.all(dequantize_blocks(q.codes, q.scales, "fp8_e4m3fn", (1, 4)) == 0)


def test_what_is_not_finite_is_confined_to_its_block() -> None:
    x = np.ones((2, 8))
    x[0, 1] = np.nan
    q = quantize_blocks(x, "fp8_e4m3fn", (1, 4))
    values = dequantize_blocks(q.codes, q.scales, "fp8_e4m3fn", (1, 4))
    assert np.isnan(values[0, 1])
    assert np.isfinite(values[1]).all()
    assert np.isfinite(values[0, 4:]).all()


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3fn", "fp8_e5m2", "int4", "int8"])
@pytest.mark.parametrize("rule", ["floor", "half_up", "cutlass", "ceil"])
def test_microscaling_groups_of_32(name: str, rule: Any) -> None:
    x = matrix(8, 96)
    q = quantize_blocks_e8m0(x, name, (1, 32), rule)
    assert q.scales.dtype == np.uint8
    assert q.scales.shape == (8, 3)
    values = dequantize_blocks(q.codes, q.scales, name, (1, 32))
    scale = np.repeat(e8m0_decode(q.scales), 32, axis=1)
    limit = ELEMENTS[name].max_value
    assert np.all((values <= limit * scale) & (values >= ELEMENTS[name].min_value * scale))
    if rule == "ceil":
        assert np.all(np.abs(x) <= limit * scale)  # nothing saturates
    top = np.abs(x).reshape(8, 3, 32).max(axis=2)
    power = 2.0 ** np.floor(np.log2(limit))
    if rule == "floor":
        assert np.all((top >= power * e8m0_decode(q.scales)) & (top < 2.0 * power * e8m0_decode(q.scales)))


def test_zero_points_keep_zero_and_both_ends() -> None:
    x = np.array([[0.0, 1.0, 2.0, 3.75], [-7.5, 0.0, 0.0, 7.5], [-3.0, -1.0, -2.0, -0.5]])
    q = quantize_blocks_with_zeros(x, "uint4", PER_ROW)
    assert q.scales[:, 0].tolist() == [0.25, 1.0, float(F32(3) / F32(15))]
    assert q.zeros[:, 0].tolist() == [0, 8, 15]
    assert q.codes[0].tolist() == [0, 4, 8, 15]
    assert q.codes[1].tolist() == [0, 8, 8, 15]
    values = dequantize_blocks(q.codes, q.scales, "uint4", PER_ROW, zeros=q.zeros)
    assert np.array_equal(values[0], x[0])
    assert values[1].tolist() == [-8.0, 0.0, 0.0, 7.0]
    assert np.all(np.abs(values[2] - x[2]) <= q.scales[2] / 2)


def test_nvfp4_has_two_levels_of_scales() -> None:
    x = matrix(6, 40)
    q = quantize_nvfp4(x)
    gs = F32(2688) / F32(np.abs(x).max())
    assert q.global_scale == F32(1) / gs
    assert q.scales.shape == (6, 3)
    for n in range(6):
        for g in range(3):
            part = x[n, 16 * g : 16 * g + 16].astype(F32)
            wanted = (gs * (np.abs(part).max() / F32(6))).astype(ml_dtypes.float8_e4m3fn)
            assert q.scales[n, g] == wanted.view(np.uint8)
            quotient = np.clip(part * (gs / F32(wanted)), -6, 6)
            found = q.codes[n, 16 * g : 16 * g + 16].view(ml_dtypes.float4_e2m1fn)
            assert np.array_equal(found.astype(F32), quotient.astype(ml_dtypes.float4_e2m1fn).astype(F32))
    values = dequantize_nvfp4(q.codes, q.scales, float(q.global_scale))
    exact = Fraction(float(decode(q.codes[2, 33], "fp4_e2m1"))) * Fraction(float(decode(q.scales[2, 2], "fp8_e4m3fn")))
    assert Fraction(float(values[2, 33])) == exact * Fraction(float(q.global_scale))


def test_nvfp4_of_a_part_uses_the_scale_of_the_whole() -> None:
    x = matrix(4, 32)
    assert quantize_nvfp4(x[:2], float(np.abs(x).max())).global_scale == quantize_nvfp4(x).global_scale
    assert np.array_equal(quantize_nvfp4(x[:2], float(np.abs(x).max())).codes, quantize_nvfp4(x).codes[:2])
    zeros = quantize_nvfp4(np.zeros((2, 16)))
    assert np.all(dequantize_nvfp4(zeros.codes, zeros.scales, float(zeros.global_scale)) == 0)


@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (130, 5), (300, 18)])
def test_swizzled_scales_lie_where_the_layout_says(shape: tuple[int, int]) -> None:
    scales = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape) + 1
    swizzled = swizzle_scales(scales)
    tiles_across = -(-shape[1] // 4)
    flat = swizzled.reshape(-1)
    for r, c in np.ndindex(shape):
        tile = (r // 128) * tiles_across + c // 4
        assert flat[tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4] == scales[r, c]
    assert np.count_nonzero(swizzled) == scales.size
    assert np.array_equal(unswizzle_scales(swizzled, *shape), scales)
