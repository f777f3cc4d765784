"""Number formats as NumPy float64 arithmetic: decode stored arrays, round to a format, size of an ulp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
AnyArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A binary floating-point format with an implicit leading bit and IEEE infinities.

    precision: significand bits including the implicit one. min_exponent: exponent of the smallest normal number.
    """

    name: str
    precision: int
    min_exponent: int
    max_value: float
    storage: np.dtype[Any]


FORMATS = {
    "fp32": Format(
        name="fp32",
        precision=24,
        min_exponent=-126,
        max_value=float(np.finfo(np.float32).max),
        storage=np.dtype(np.float32),
    ),
    "fp16": Format(name="fp16", precision=11, min_exponent=-14, max_value=65504.0, storage=np.dtype(np.float16)),
    "bf16": Format(
        name="bf16",
        precision=8,
        min_exponent=-126,
        max_value=float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),  # type: ignore[no-untyped-call]  # untyped there
        storage=np.dtype(ml_dtypes.bfloat16),
    ),
}


_EXPONENT_BITS = np.uint64(0x7FF0000000000000)
_LARGEST_POWER = 2.0**1023  # that of an infinity and of NaN


def to_float64(values: AnyArray) -> Float64:
    """The exact float64 values of an array stored in any format of this module (float64 passes through)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        return np.asarray(values).astype(np.float64)


def ulp(values: Float64, name: str) -> Float64:
    """Distance between neighbouring numbers of format `name` at |values|: 2^(floor(log2|v|) - precision + 1).

    Below the smallest normal number the distance is that of the subnormals.
    """
    fmt = FORMATS[name]
    # A float64 whose significand bits are cleared is 2^floor(log2|v|): five times as fast as frexp and ldexp.
    values = np.asarray(values, dtype=np.float64)
    step: Float64 = np.empty(values.shape)
    np.bitwise_and(values.view(np.uint64), _EXPONENT_BITS, out=step.view(np.uint64))
    np.maximum(step, 2.0**fmt.min_exponent, out=step)  # maximum and minimum are faster than np.clip
    np.minimum(step, _LARGEST_POWER, out=step)
    step *= 2.0 ** (1 - fmt.precision)
    return step


def round_to(values: Float64, name: str) -> Float64:
    """float64 values rounded to nearest-even in format `name`, once; overflow becomes +-Inf, NaN stays NaN.

    Source: IEEE 754-2019, section 4.3.1 (roundTiesToEven) and 7.4 (overflow).
    """
    fmt = FORMATS[name]
    with np.errstate(invalid="ignore"):
        step = ulp(values, name)
        rounded: Float64 = np.divide(values, step, out=np.empty(step.shape))
        np.rint(rounded, out=rounded)
        rounded *= step
    over = np.abs(rounded) > fmt.max_value
    if not np.any(over):
        return rounded
    return np.where(over & np.isfinite(values), np.copysign(np.inf, values), rounded)


def store(values: Float64, name: str) -> AnyArray:
    """float64 values rounded to nearest-even and stored in format `name`'s own array dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        return round_to(values, name).astype(FORMATS[name].storage)


def format_of(dtype: object) -> str:
    """The format name (`fp32`, `fp16`, `bf16`) of a NumPy dtype.

    Raises KeyError for a dtype that is none of them.
    """
    wanted = np.dtype(dtype)  # type: ignore[call-overload]  # any dtype-like object is welcome
    for name, fmt in FORMATS.items():
        if fmt.storage == wanted:
            return name
    raise KeyError(f"no format is stored as {wanted}")
