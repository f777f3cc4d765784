"""Reference of an element's conversion: numbers to codes and back, one by one, for every format of `ELEMENTS`."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from moecheck.elements import ELEMENTS, Element
from moecheck.formats import AnyArray, Float64

Codes = npt.NDArray[np.uint8]
_EXPONENT_BITS = np.uint64(0x7FF0000000000000)


def decode(codes: AnyArray, name: str) -> Float64:
    """The exact numbers that codes stand for, float64 of the codes' shape.

    codes: integers of any width that hold one code each in their low bits; what lies above these is ignored.
    A float is (-1)^S 2^(E - bias) (1 + M 2^-m), or (-1)^S 2^(1 - bias) M 2^-m where E = 0.
    Sources: OCP OFP8 1.0, section 5; OCP MX 1.0, section 5.3; arXiv:2206.02915 (fnuz).
    """
    element = ELEMENTS[name]
    numbers: Float64 = _numbers(name)[np.asarray(codes).astype(np.int64) & ((1 << element.bits) - 1)]
    return numbers


def encode(values: Float64, name: str, *, saturate: bool = True) -> Codes:
    """The codes of the nearest numbers of a format, ties to the even code, [...] uint8, one code a byte.

    saturate: what lies beyond the largest number, infinities too, becomes that; otherwise the format's infinity, or its
    NaN where it has none (a format of numbers only always saturates). NaN becomes NaN of the same sign, the largest
    number where the format has none, as PTX's cvt.satfinite does, and 0 of an integer format.
    Source: OCP OFP8 1.0, section 5.2 (roundTiesToEven, saturating and other conversions); OCP MX 1.0, section 5.3.
    """
    element, x = ELEMENTS[name], np.asarray(values, np.float64)
    if not element.is_float:
        return _integer_codes(x, element)
    sign = np.signbit(x).astype(np.int64)
    largest = _magnitude_code(np.array(element.max_value), element)
    with np.errstate(invalid="ignore"):
        code = _magnitude_code(np.minimum(np.abs(x), 4.0 * element.max_value), element)
    over = code > largest
    beyond = largest if saturate or element.special == "none" else _overflow_code(element)
    code = np.where(over, beyond, code)
    code = np.where(np.isnan(x), _nan_code(element, largest), code)
    if element.special == "nan_negative_zero":  # one zero; -0 and NaN of either sign have no codes of their own
        one_nan = np.isnan(x) | (over & (not saturate))
        return np.where(one_nan, 0x80, code | ((sign & (code > 0)) << 7)).astype(np.uint8)
    negative = np.where(np.isnan(x) & (element.special == "none"), 0, sign)
    return (code | (negative << (element.bits - 1))).astype(np.uint8)


def pack_nibbles(codes: AnyArray) -> Codes:
    """4-bit codes [..., K] two to a byte, [..., K / 2] uint8: the even column in the low half. K must be even.

    Source: OCP MX leaves the order open; this one is of NVIDIA's e2m1x2, torch.float4_e2m1fn_x2 and checkpoints.
    """
    if codes.shape[-1] % 2:
        raise ValueError(f"An odd number of columns, {codes.shape[-1]}, does not fill bytes.")
    low, high = codes[..., 0::2].astype(np.uint8) & 15, codes[..., 1::2].astype(np.uint8) & 15
    return np.asarray(low | (high << 4), np.uint8)


def unpack_nibbles(packed: AnyArray) -> Codes:
    """The inverse of `pack_nibbles`: [..., K / 2] uint8 to [..., K] uint8."""
    both = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.uint8)
    return both.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


@cache
def _numbers(name: str) -> Float64:
    """The number of every code of a format, [2^bits]."""
    element = ELEMENTS[name]
    codes = np.arange(1 << element.bits)
    if not element.is_float:
        if element.offset is not None:
            return codes.astype(np.float64) - element.offset
        return np.where(codes < 1 << (element.bits - 1), codes, codes - (1 << element.bits)).astype(np.float64)
    mantissa_bits, sign = element.mantissa_bits, codes >> (element.bits - 1)
    magnitude = codes & ((1 << (element.bits - 1)) - 1)
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1)
    significand = mantissa * 2.0**-mantissa_bits + (exponent > 0)
    numbers = np.where(sign == 1, -1.0, 1.0) * np.ldexp(significand, np.maximum(exponent, 1) - element.exponent_bias)
    if element.special == "nan_all_ones":
        numbers[magnitude == magnitude.max()] = np.nan
    if element.special == "nan_negative_zero":
        numbers[codes == 1 << (element.bits - 1)] = np.nan
    if element.special == "ieee":
        top = exponent == exponent.max()
        numbers[top] = np.where(mantissa[top] == 0, np.where(sign[top] == 1, -np.inf, np.inf), np.nan)
    return np.asarray(numbers, np.float64)


def _magnitude_code(size: Float64, element: Element) -> npt.NDArray[np.int64]:
    """The code without its sign of non-negative numbers, as if exponents had no end; NaN gives anything.

    With e = max(floor(log2 v), e_min) and m = round(v 2^(mantissa_bits - e)) it is ((e + bias) << mantissa_bits) + m -
    2^mantissa_bits: a subnormal has m alone, and a carry into the next power of two is one of the exponent's code.
    """
    power = (np.asarray(size, np.float64).view(np.uint64) & _EXPONENT_BITS).view(np.float64)
    power = np.maximum(power, 2.0 ** (1 - element.exponent_bias))
    with np.errstate(invalid="ignore"):
        steps = np.nan_to_num(np.rint(size / power * 2.0**element.mantissa_bits)).astype(np.int64)
    exponent = np.frexp(np.where(np.isfinite(power), power, 1.0))[1] - 1
    code = ((exponent.astype(np.int64) + element.exponent_bias - 1) << element.mantissa_bits) + steps
    return np.asarray(code, np.int64)


def _overflow_code(element: Element) -> int:
    """Infinity, or NaN where there is none."""
    if element.special == "ieee":
        return ((1 << element.exponent_bits) - 1) << element.mantissa_bits
    return (1 << (element.bits - 1)) - 1


def _nan_code(element: Element, largest: npt.NDArray[np.int64]) -> int:
    return int(largest) if element.special == "none" else (1 << (element.bits - 1)) - 1


def _integer_codes(x: Float64, element: Element) -> Codes:
    number = np.clip(np.rint(np.nan_to_num(x, nan=0.0)), element.min_value, element.max_value).astype(np.int64)
    return ((number + (element.offset or 0)) & ((1 << element.bits) - 1)).astype(np.uint8)
