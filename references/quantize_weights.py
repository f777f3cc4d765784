"""Reference of quantised weights: one matrix to the arrays that a kernel is given, and exactly back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moecheck.elements import ELEMENTS
from moecheck.formats import AnyArray, Float64, round_to, store, to_float64
from moecheck.quantization import Quantization

from .quantize_blocks import dequantize_blocks, extremes, quantize_blocks_e8m0, quantize_blocks_scaled, zero_points
from .quantize_elements import pack_nibbles, unpack_nibbles
from .quantize_nvfp4 import dequantize_nvfp4, quantize_nvfp4
from .quantize_scales import e8m0_decode, float_scale, ue8m0_of_scale
from .swizzle_scales import swizzle_scales, unswizzle_scales


class QuantizedMatrix(NamedTuple):
    """codes: [N, K] uint8, or [N, K / 2] packed. scales, zeros: as in Quantization. global_scale: fp32 of nvfp4."""

    codes: AnyArray
    scales: AnyArray
    zeros: AnyArray | None = None
    global_scale: np.float32 | None = None


def quantize_weights(w: Float64, quantization: Quantization, dtype: str = "fp32") -> QuantizedMatrix:
    """A matrix [N, K] as codes and scales. dtype: format of scales that are stored as the activations are.

    Codes are of the quotients by the scales as they are stored. E8M0 scales: floor for fp4, fp6 and integers, as OCP MX
    1.0 section 6.3 has it, and ceil for fp8.
    """
    name, block = quantization.weights, (quantization.rows, quantization.columns)
    if quantization.scale == "e4m3":
        nvfp4 = quantize_nvfp4(w)
        scales = swizzle_scales(nvfp4.scales) if quantization.swizzled else nvfp4.scales
        return QuantizedMatrix(pack_nibbles(nvfp4.codes), scales, global_scale=nvfp4.global_scale)
    if quantization.scale == "e8m0":
        rule = "ceil" if ELEMENTS[name].bits == 8 else "floor"
        found = quantize_blocks_e8m0(w, name, block, rule)  # type: ignore[arg-type]  # one of the two literals
        codes, scales = found.codes, found.scales
        return QuantizedMatrix(
            _packed(codes, quantization), swizzle_scales(scales) if quantization.swizzled else scales
        )
    least, largest = extremes(w, block)
    scale = float_scale(largest - least if quantization.zero_points else largest, least, name)
    if quantization.scale == "power_of_two":
        scale = e8m0_decode(ue8m0_of_scale(scale)).astype(np.float32)
    if quantization.scale == "input":
        scale = round_to(scale.astype(np.float64), dtype).astype(np.float32)
    zeros = zero_points(least, scale, name) if quantization.zero_points else None
    codes = quantize_blocks_scaled(w, name, block, scale, zeros)
    kept = store(scale.astype(np.float64), dtype) if quantization.scale == "input" else scale
    return QuantizedMatrix(_packed(codes, quantization), kept, zeros)


def dequantize_weights(matrix: QuantizedMatrix, quantization: Quantization, columns: int) -> Float64:
    """The numbers of a quantised matrix, [N, columns] float64, exact. codes, scales: of any dtype of their size."""
    codes = np.ascontiguousarray(matrix.codes).view(np.uint8)
    codes = unpack_nibbles(codes) if quantization.packed else codes
    assert codes.shape[1] == columns
    block = (quantization.rows, quantization.columns)
    scales: Any = matrix.scales
    if quantization.scale in ("e8m0", "e4m3"):
        scales = np.ascontiguousarray(scales).view(np.uint8)
    if quantization.swizzled:
        scales = unswizzle_scales(scales, len(codes), -(-columns // max(quantization.columns, 1)))
    if quantization.scale == "e4m3":
        assert matrix.global_scale is not None
        return dequantize_nvfp4(codes, scales, float(matrix.global_scale))
    scales = scales if quantization.scale == "e8m0" else to_float64(scales)
    return dequantize_blocks(codes, scales, quantization.weights, block, zeros=matrix.zeros)


def _packed(codes: AnyArray, quantization: Quantization) -> AnyArray:
    return pack_nibbles(codes) if quantization.packed else codes
