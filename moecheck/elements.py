"""Element formats of quantised tensors as data: how many bits, which numbers, and what codes beyond numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Special = Literal["none", "nan_all_ones", "nan_negative_zero", "ieee"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """A code of `bits` bits: sign, exponent and significand, or an integer where exponent_bits is 0.

    mantissa_bits: significand bits without the implicit one. exponent_bias: code 1 of the exponent is the smallest
    normal exponent, 1 - bias; code 0 holds the subnormals. max_value, min_value: the largest and the least number that
    a conversion gives. special: `none`, every code is a number; `nan_all_ones`, the largest code of either sign is NaN;
    `nan_negative_zero`, the code of -0 is NaN; `ieee`, the largest exponent holds infinities and NaN.
    offset: of an integer, the code that stands for 0, None for two's complement.
    """

    bits: int
    exponent_bits: int = 0
    mantissa_bits: int = 0
    exponent_bias: int = 0
    max_value: float
    min_value: float
    special: Special = "none"
    offset: int | None = None

    @property
    def is_float(self) -> bool:
        return self.exponent_bits > 0


def _float(exponent: int, mantissa: int, bias: int, largest: float, special: Special = "none") -> Element:
    return Element(
        bits=1 + exponent + mantissa,
        exponent_bits=exponent,
        mantissa_bits=mantissa,
        exponent_bias=bias,
        max_value=largest,
        min_value=-largest,
        special=special,
    )


# fp8: OCP 8-bit Floating Point Specification (OFP8) 1.0, tables 1 and 2. fnuz: Noune et al. 2022 (arXiv:2206.02915),
# one zero, no infinity, bias one larger. fp6 and fp4: OCP Microscaling Formats (MX) 1.0, section 5.3. int8 is
# symmetric: -128 is decoded but never written. uint4b8: an int4 stored plus 8. uint4: 0 to 15, used with zero points.
ELEMENTS = {
    "fp8_e4m3fn": _float(4, 3, 7, 448.0, "nan_all_ones"),
    "fp8_e4m3fnuz": _float(4, 3, 8, 240.0, "nan_negative_zero"),
    "fp8_e5m2": _float(5, 2, 15, 57344.0, "ieee"),
    "fp6_e2m3": _float(2, 3, 1, 7.5),
    "fp6_e3m2": _float(3, 2, 3, 28.0),
    "fp4_e2m1": _float(2, 1, 1, 6.0),
    "int8": Element(bits=8, max_value=127.0, min_value=-127.0),
    "uint8b128": Element(bits=8, max_value=127.0, min_value=-128.0, offset=128),
    "int4": Element(bits=4, max_value=7.0, min_value=-8.0),
    "uint4b8": Element(bits=4, max_value=7.0, min_value=-8.0, offset=8),
    "uint4": Element(bits=4, max_value=15.0, min_value=0.0, offset=0),
}
