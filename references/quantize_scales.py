"""Reference of scales: from a block's extreme values to the number that its codes are multiplied by."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from moecheck.elements import ELEMENTS
from moecheck.formats import AnyArray, Float64

Float32 = npt.NDArray[np.float32]
E8M0Rule = Literal["floor", "half_up", "cutlass", "ceil"]

BIAS, LARGEST, NAN = 127, 254, 255
# What is added to the bits of amax before its significand is cut off: nothing; a half; a quarter, so that 1.75 carries.
_ADDED = {"floor": 0, "half_up": 1 << 22, "cutlass": 1 << 21}


def float_scale(largest: AnyArray, least: AnyArray, name: str, *, eps: float = 1e-10) -> Float32:
    """Scale s = max(largest / max_value, least / min_value, eps / max_value) in fp32: it holds both.

    largest, least: extreme values of each block, fp32 numbers. For symmetric formats s is amax / max_value.
    Sources: DeepSeek-V3 (arXiv:2412.19437) section 3.3.1, s = amax / 448; int4 from -8 to 7 as in vLLM.
    """
    element = ELEMENTS[name]
    high: Float32 = np.asarray(largest, np.float32) / np.float32(element.max_value)
    if element.min_value == 0.0:
        return np.asarray(np.maximum(high, np.float32(eps) / np.float32(element.max_value)), np.float32)
    low: Float32 = np.asarray(least, np.float32) / np.float32(element.min_value)
    return np.asarray(np.maximum(np.maximum(high, low), np.float32(eps) / np.float32(element.max_value)), np.float32)


def per_token_scale(amax: Float64, name: str = "fp8_e4m3fn", *, upper_bound: float | None = None) -> Float32:
    """Scale s = max(min(amax, upper_bound) / max_value, 1 / (512 max_value)) in fp32.

    Source: vLLM's dynamic per-token fp8 quantiser.
    """
    limit = np.float32(ELEMENTS[name].max_value)
    x: Float32 = np.asarray(amax, np.float32)
    if upper_bound is not None:
        x = np.minimum(x, np.float32(upper_bound))
    return np.asarray(np.maximum(x / limit, np.float32(1.0) / (limit * np.float32(512.0))), np.float32)


def e8m0_of_amax(amax: Float64, name: str, rule: E8M0Rule) -> npt.NDArray[np.uint8]:
    """The E8M0 code, exponent + 127, of the scale of blocks whose largest magnitude is `amax` (fp32 numbers).

    floor: floor(log2 amax) - e_max, with 2^e_max the largest power of two of the format; the largest values saturate.
    half_up, cutlass: the same after the significand of amax was rounded up from 1.5, or from 1.75, on.
    ceil: ceil(log2(amax / max_value)), nothing saturates. A block of zeros has the code 0, one of NaN or infinity 255.
    Sources: OCP MX 1.0, section 6.3 (floor); CUTLASS's conversion as vLLM's mxfp4 quantiser repeats it (amax bits +
    2^21); DeepGEMM's ceil_to_ue8m0 (ceil). All from bits: log2 in fp32 errs next to powers of two.
    """
    x: Float32 = np.ascontiguousarray(amax, np.float32)
    if rule == "ceil":
        return ue8m0_of_scale(x / np.float32(ELEMENTS[name].max_value))
    bits = np.abs(x).view(np.uint32).astype(np.int64)
    top = int(np.floor(np.log2(ELEMENTS[name].max_value)))
    exponent = ((bits + _ADDED[rule]) >> 23) - top
    return _finished(exponent, x)


def ue8m0_of_scale(scale: AnyArray) -> npt.NDArray[np.uint8]:
    """The code of 2^ceil(log2 s) of positive fp32 scales: the exponent's bits, one more if significand bits are set.

    A subnormal s is rounded up to 2^-126, the code 1; 2^-127 itself to the code 0. 0 has the code 0.
    """
    s: Float32 = np.ascontiguousarray(scale, np.float32)
    bits = s.view(np.uint32).astype(np.int64)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0)
    exponent = np.where((bits >> 23 == 0) & (bits <= 1 << 22), 0, exponent)
    return _finished(exponent, s)


def e8m0_nearest(values: Float64) -> npt.NDArray[np.uint8]:
    """The code of the nearest power of two of positive numbers, 1.5 rounding up: the cast to float8_e8m0fnu.

    Up to 2^-127 it is code 0, and all between that and 2^-126 is code 1: torch and ml_dtypes agree on this, as both
    round the bits of an fp32 subnormal. Negative numbers, NaN and what rounds to 2^128 become NaN, 255.
    """
    x = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        significand, power = np.frexp(x)  # x = significand 2^power, 0.5 <= significand < 1
        code = power - 1 + BIAS + (significand >= 0.75)
        code = np.where((x > 2.0**-BIAS) & (x < 2.0 ** (1 - BIAS)), 1, code)
        bad = ~(x >= 0) | (code > LARGEST) | np.isinf(x)
    return np.where(bad, NAN, np.maximum(np.where(x == 0, 0, code), 0)).astype(np.uint8)


def e8m0_decode(codes: AnyArray) -> Float64:
    """2^(code - 127), NaN for 255; float64 of the codes' shape. Source: OCP MX 1.0, section 5.4.1."""
    wide = np.asarray(codes).astype(np.int64)
    return np.where(wide == NAN, np.nan, np.ldexp(1.0, (wide - BIAS).astype(np.int32)))


def _finished(code: npt.NDArray[np.int64], source: Float32) -> npt.NDArray[np.uint8]:
    held = np.clip(code, 0, LARGEST)
    return np.where(np.isfinite(source), held, NAN).astype(np.uint8)
