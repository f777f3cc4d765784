"""How a kernel requantises activations: the format, which elements share a scale, and the scale's arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import SpecError

ScaleFormat = Literal["float", "power_of_two", "floor", "half_up", "cutlass"]
Rounding = Literal["nearest", "truncate"]
Division = Literal["divide", "multiply"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A format that only quantised values have; conversions saturate at max_value.

    precision: significand bits including the implicit one; for the integer format, the bits of max_value. min_exponent:
    exponent of the smallest normal number, below which the distance of neighbours stays the same.
    """

    precision: int
    min_exponent: int
    max_value: float


# fp8: OCP 8-bit Floating Point Specification (OFP8) 1.0, tables 1 and 2. int8 is symmetric: -128 is not used; with all
# of its numbers "subnormal", neighbours are 1 apart.
CODES = {
    "fp8_e4m3fn": Code(precision=4, min_exponent=-6, max_value=448.0),
    "fp8_e4m3fnuz": Code(precision=4, min_exponent=-7, max_value=240.0),
    "fp8_e5m2": Code(precision=3, min_exponent=-14, max_value=57344.0),
    "int8": Code(precision=7, min_exponent=6, max_value=127.0),
    "fp4_e2m1": Code(precision=2, min_exponent=0, max_value=6.0),
}
# E8M0 scales by amax alone: (significand of amax from which its exponent is the next one, up to which it is kept).
CARRIES = {"floor": 1.0, "half_up": 1.5, "cutlass": 1.75}


NO_EPS = 1e-30  # least amax of a kernel that has none: the largest that no group which is not zero comes near


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """A quantiser of a row of activations: q = round(x / s), s = max(amax, eps) / max_value, used as q s.

    format: a name in CODES. group: elements along the row that share a scale, the last group being shorter where the
    row ends; 0 for the whole row (one scale per token). scale: `float`, fp32 as computed; `power_of_two`: rounded up to
    the next power of two (UE8M0); `floor`, `half_up`, `cutlass`: 2^(floor(log2 amax) - e_max), as OCP MX has it, the
    significand of amax rounded up before from 1.5 or 1.75 on, 2^e_max being the format's largest power; the largest
    values saturate. division: `divide`, x / s; `multiply`, x times 1 / s rounded to fp32. eps: the least amax. amax:
    `divide`, s = amax / max_value; `multiply`, amax times 1 / max_value rounded to fp32. rounding: of x / s to a code,
    to nearest-even or toward zero. static: s is not computed but given, as a1_scale or a2_scale of the call; group,
    scale, eps and amax are then left at their defaults.
    """

    format: str = "fp8_e4m3fn"
    group: int = 0
    scale: ScaleFormat = "float"
    division: Division = "divide"
    eps: float = 1e-10
    amax: Division = "divide"
    rounding: Rounding = "nearest"
    static: bool = False

    def __post_init__(self) -> None:
        if self.format not in CODES:
            raise SpecError(f"Quantizer.format={self.format!r} must be one of {', '.join(CODES)}.")
        if self.group < 0:
            raise SpecError(f"Quantizer.group={self.group} must be 0 (a whole row) or a number of elements.")
        if self.scale not in ("float", "power_of_two", *CARRIES):
            raise SpecError(f"Quantizer.scale={self.scale!r} must be float, power_of_two, floor, half_up or cutlass.")
        if self.rounding not in ("nearest", "truncate"):
            raise SpecError(f"Quantizer.rounding={self.rounding!r} must be nearest or truncate.")
        if self.division not in ("divide", "multiply"):
            raise SpecError(f"Quantizer.division={self.division!r} must be divide or multiply.")
        if self.amax not in ("divide", "multiply"):
            raise SpecError(f"Quantizer.amax={self.amax!r} must be divide or multiply.")
        if not isinstance(self.static, bool):
            raise SpecError(f"Quantizer.static={self.static!r} must be true or false.")
        if self.static and (self.group, self.scale, self.eps, self.amax) != (0, "float", 1e-10, "divide"):
            raise SpecError("Quantizer.static=True is given its scale: leave group, scale, eps and amax out.")
        if not 0.0 < self.eps < float("inf"):
            raise SpecError(f"Quantizer.eps={self.eps} must be positive and finite.")

    def words(self) -> str:
        """`fp8 e4m3 in groups of 128 with float scales`."""
        name = _WORDS[self.format]
        where = f"in groups of {self.group}" if self.group else "per token"
        scale = _SCALE_WORDS[self.scale]
        what = f"{name} with the scale that is given" if self.static else f"{name} {where} with {scale}"
        times = ", multiplying by 1 / scale" if self.division == "multiply" else ""
        toward = ", rounded toward zero" if self.rounding == "truncate" else ""
        least = "" if self.eps == Quantizer().eps else f", amax at least {self.eps:.3g}"
        if self.eps <= NO_EPS:
            least = ", amax as it is"
        return what + (" of amax times 1 / largest" if self.amax == "multiply" else "") + least + times + toward


_WORDS = {
    "fp8_e4m3fn": "fp8 e4m3",
    "fp8_e4m3fnuz": "fp8 e4m3fnuz",
    "fp8_e5m2": "fp8 e5m2",
    "int8": "int8",
    "fp4_e2m1": "fp4 e2m1",
}
_SCALE_WORDS = {
    "float": "float scales",
    "power_of_two": "scales rounded up to powers of two",
    "floor": "E8M0 scales of amax rounded down",
    "half_up": "E8M0 scales of amax rounded up from 1.5 on",
    "cutlass": "E8M0 scales of amax rounded up from 1.75 on",
}
