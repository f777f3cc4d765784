"""Reference of quantising a matrix whose blocks share a scale: per tensor, row, 1 x 128, 128 x 128 or group."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecheck.elements import ELEMENTS
from moecheck.formats import AnyArray, Float64, to_float64

from .quantize_elements import Codes, decode, encode
from .quantize_scales import E8M0Rule, Float32, e8m0_decode, e8m0_of_amax, float_scale

Block = tuple[int, int]
PER_TENSOR, PER_ROW = (0, 0), (1, 0)  # a token's scale, or an output channel's
TILE_1X128, TILE_128X128 = (1, 128), (128, 128)


class QuantizedBlocks(NamedTuple):
    """codes: [N, K] uint8. scales: [ceil(N / rows), ceil(K / columns)], fp32 or E8M0 codes (uint8)."""

    codes: Codes
    scales: AnyArray


class QuantizedWithZeros(NamedTuple):
    """codes, zeros: uint8, of [N, K] and of each block. scales: fp32."""

    codes: Codes
    scales: Float32
    zeros: Codes


def quantize_blocks(x: Float64, name: str, block: Block, *, eps: float = 1e-10) -> QuantizedBlocks:
    """Codes q = sat(round(x / s)) with one fp32 scale for each block, s as in float_scale; quotients in fp32.

    x: [N, K], fp32 numbers. block: rows and columns that share a scale, 0 for all; the last ones are smaller where the
    matrix ends. The scale of x[n, k] is scales[n // rows, k // columns].
    """
    least, largest = extremes(x, block)
    scales = float_scale(largest, least, name, eps=eps)
    return QuantizedBlocks(_codes(x, spread(scales, block, x.shape), name), scales)


def quantize_blocks_e8m0(x: Float64, name: str, block: Block, rule: E8M0Rule) -> QuantizedBlocks:
    """The same with powers of two as scales, given as E8M0 codes by one of the rules of e8m0_of_amax (MX formats)."""
    least, largest = extremes(x, block)
    scales = e8m0_of_amax(np.maximum(largest, -least), name, rule)
    wide = e8m0_decode(spread(scales, block, x.shape))
    return QuantizedBlocks(encode(np.asarray(x, np.float64) / wide, name), scales)


def quantize_blocks_static(x: Float64, name: str, scale: float) -> Codes:
    """Codes q = sat(round(x / s)) with a given scale, [N, K] uint8."""
    return _codes(x, np.full(x.shape, scale, np.float32), name)


def quantize_blocks_with_zeros(x: Float64, name: str, block: Block, *, eps: float = 1e-10) -> QuantizedWithZeros:
    """Codes q = sat(round(x / s) + z) with s = (max - min) / max_value, z = sat(round(-min / s)), in fp32.

    max, min: of the block, 0 among its values. name: an unsigned integer format; the number of q = z is exactly 0.
    Source: Jacob et al. 2018 (arXiv:1712.05877), section 2.1, with the range widened to hold 0.
    """
    least, largest = extremes(x, block)
    scales = float_scale(largest - least, least, name, eps=eps)
    zeros = zero_points(least, scales, name)
    return QuantizedWithZeros(quantize_blocks_scaled(x, name, block, scales, zeros), scales, zeros)


def zero_points(least: Float64, scales: AnyArray, name: str) -> Codes:
    """Codes z = sat(round(-min / s)) of each block. least: of each block, at most 0. scales: fp32."""
    return encode(np.asarray(-least, np.float32).astype(np.float64) / scales.astype(np.float64), name)


def quantize_blocks_scaled(x: Float64, name: str, block: Block, scales: AnyArray, zeros: AnyArray | None) -> Codes:
    """Codes q = sat(round(x / s) + z) for given scales and zero points, quotients in fp32. Returns [N, K] uint8."""
    if zeros is None:
        return _codes(x, spread(scales, block, x.shape), name)
    quotient = np.asarray(x, np.float32) / spread(scales, block, x.shape).astype(np.float32)
    shifted = np.rint(quotient.astype(np.float64)) + decode(spread(zeros, block, x.shape), name)
    return encode(shifted, name)


def dequantize_blocks(
    codes: AnyArray, scales: AnyArray, name: str, block: Block, *, zeros: AnyArray | None = None
) -> Float64:
    """(q - z) s, exact in float64 for scales of up to 24 bits. codes: [N, K]. Returns [N, K] float64.

    scales: floats, or E8M0 codes (uint8). zeros: codes of each block, None for none.
    """
    values: Float64 = decode(codes, name)
    if zeros is not None:
        values = values - decode(spread(zeros, block, codes.shape), name)
    wide: Float64 = e8m0_decode(scales) if scales.dtype == np.uint8 else to_float64(scales)
    with np.errstate(invalid="ignore"):
        return np.asarray(values * spread(wide, block, codes.shape), np.float64)


def extremes(x: Float64, block: Block) -> tuple[Float64, Float64]:
    """The least and the largest value of each block, 0 among them: two arrays [ceil(N / rows), ceil(K / columns)]."""
    rows, columns = (size or max(whole, 1) for size, whole in zip(block, x.shape, strict=True))
    padded = np.pad(np.asarray(x, np.float64), ((0, -x.shape[0] % rows), (0, -x.shape[1] % columns)))
    tiles = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    return np.minimum(tiles.min(axis=(1, 3)), 0.0), np.maximum(tiles.max(axis=(1, 3)), 0.0)


def spread(each: AnyArray, block: Block, shape: tuple[int, ...]) -> AnyArray:
    """What belongs to each block, given to each of its elements: [N, K]."""
    rows, columns = (size or max(whole, 1) for size, whole in zip(block, shape, strict=True))
    return np.repeat(np.repeat(each, rows, axis=0), columns, axis=1)[: shape[0], : shape[1]]


def _codes(x: Float64, scale: AnyArray, name: str) -> Codes:
    """Codes of the fp32 quotients of fp32 numbers."""
    assert name in ELEMENTS
    with np.errstate(invalid="ignore", over="ignore"):
        quotient = np.asarray(np.asarray(x, np.float32) / scale.astype(np.float32), np.float32)
    return encode(quotient.astype(np.float64), name)
