"""Reference of nvfp4: e2m1 numbers in groups of 16 with e4m3 scales, which a scale of the tensor brings into range."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecheck.elements import ELEMENTS
from moecheck.formats import AnyArray, Float64

from .quantize_blocks import extremes, spread
from .quantize_elements import Codes, decode, encode
from .quantize_scales import Float32

GROUP = 16
_GROUPS = (1, GROUP)
FP4, FP8 = "fp4_e2m1", "fp8_e4m3fn"
FULL = np.float32(ELEMENTS[FP4].max_value * ELEMENTS[FP8].max_value)


class QuantizedNvfp4(NamedTuple):
    """codes: [N, K] uint8. scales: [N, ceil(K / 16)] uint8, e4m3 codes. global_scale: fp32, what a product is
    multiplied by: 1 / gs.
    """

    codes: Codes
    scales: Codes
    global_scale: np.float32


def quantize_nvfp4(x: Float64, amax: float | None = None) -> QuantizedNvfp4:
    """Scales gs = 448 * 6 / amax and sf = e4m3(gs amax_group / 6), codes q = e2m1(x (gs / sf)); all in fp32.

    x: [N, K], fp32 numbers. amax: largest magnitude of the whole tensor, where x is a part of it (an expert's gate
    and up share one global scale; activations: that of all global experts).
    Source: NVIDIA's nvfp4 as vLLM's scaled_fp4_quant and ModelOpt define it. A tensor of zeros has gs = 1.
    """
    whole = np.float32(np.max(np.abs(x), initial=0.0) if amax is None else amax)
    gs = FULL / whole if whole > 0 else np.float32(1.0)
    least, largest = extremes(x, _GROUPS)
    of_group: Float32 = np.maximum(largest, -least).astype(np.float32)
    scales = encode(np.asarray(gs * (of_group / np.float32(6.0)), np.float64), FP8)
    divisor = spread(decode(scales, FP8).astype(np.float32), _GROUPS, x.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(divisor > 0, np.asarray(x, np.float32) * (gs / divisor), np.float32(0.0))
    return QuantizedNvfp4(encode(quotient.astype(np.float64), FP4), scales, np.float32(np.float32(1.0) / gs))


def dequantize_nvfp4(codes: AnyArray, scales: AnyArray, global_scale: float) -> Float64:
    """Numbers q sf (1 / gs), exact in float64: 2 + 4 + 24 bits. codes: [N, K]. scales: [N, ceil(K / 16)] e4m3 codes."""
    return decode(codes, FP4) * spread(decode(scales, FP8), _GROUPS, codes.shape) * float(global_scale)
