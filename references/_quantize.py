"""Quantisers of activations: values rounded to few bits and scaled back, and a kernel's error after that.

A scale is computed in fp32, as every kernel does, from the group's largest magnitude, or given; so are the quotients.
These are rounded to nearest-even in float64, once, and saturate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecheck.formats import AnyArray, Float64
from moecheck.quantizer import CARRIES, CODES, Quantizer, Rounding

from ._stores import Estimate, flipped
from .quantize_scales import e8m0_decode, e8m0_of_amax

Float32 = npt.NDArray[np.float32]
NEVER = 1e-9  # a chance too small to look at
_EXPONENT_BITS = np.uint64(0x7FF0000000000000)


class Quantized(NamedTuple):
    """Values q s as the GEMM uses them, [n, K] float64.

    codes: q, [n, K] float64. scale: [n, groups] fp32. largest: [n, groups] int, the column of the element that
    determines the scale.
    """

    value: Float64
    codes: Float64
    scale: Float32
    largest: npt.NDArray[np.intp]

    def step(self, quantizer: Quantizer) -> Float64:
        """The distance of neighbouring values, [n, K]."""
        width = self.value.shape[1]
        return code_step(self.codes, quantizer.format) * _spread(self.scale, quantizer.group or width, width)


def quantized(values: Float64, quantizer: Quantizer, given: float | None = None) -> Quantized:
    """The products q s with q = sat(round(x / s)) and s = scale_of(amax), of each group along each row. values: [n, K].

    given: the scale of a static quantiser; ValueError where it has none.
    NaN stays NaN and, as it is the largest of its group, makes the group NaN; so does an infinity (Inf / Inf, 0 Inf).
    Sources: OCP OFP8 1.0 (formats, saturating conversion); DeepSeek-V3 (arXiv:2412.19437) section 3.3.1, equation
    q = x / (amax / 448) in tiles of 1 x 128.
    """
    n, width = values.shape
    group = quantizer.group or max(width, 1)
    starts = np.arange(0, width, group)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        x: Float32 = values.astype(np.float32)
        size = np.abs(x)
        if not width:
            none = np.zeros((n, 0))
            return Quantized(none, none, none.astype(np.float32), none.astype(np.intp))
        largest = np.stack([s + np.argmax(size[:, s : s + group], axis=1) for s in starts], axis=1)
        scale = scale_of(np.take_along_axis(size, largest, axis=1), quantizer, given)
        s = np.repeat(scale, group, axis=1)[:, :width]
        quotient = x / s if quantizer.division == "divide" else x * (np.float32(1.0) / s)
        q = coded(quotient.astype(np.float64), quantizer.format, quantizer.rounding)
        return Quantized(q * s, q, scale, largest)


def scale_of(amax: Float32, quantizer: Quantizer, given: float | None = None) -> Float32:
    """The scale max(amax, eps) / max_value in fp32; `power_of_two` rounds it up, by its bits: 2^ceil(log2 s) (UE8M0).

    given: the scale of a static quantiser, which all groups have. The other powers of two are those of e8m0_of_amax.
    Source of the rounding up: DeepGEMM's ceil_to_ue8m0; a scale rounded down would saturate the largest element.
    """
    if quantizer.static:
        if given is None:
            raise ValueError("A static quantiser needs the scale that the call is given.")
        return np.full(amax.shape, given, np.float32)
    if quantizer.scale in CARRIES:
        floor = np.maximum(amax, np.float32(quantizer.eps)).astype(np.float64)
        return np.asarray(e8m0_decode(e8m0_of_amax(floor, quantizer.format, quantizer.scale)), np.float32)  # type: ignore[arg-type]  # one of CARRIES
    limit = np.float32(CODES[quantizer.format].max_value)
    largest = np.maximum(amax, np.float32(quantizer.eps))
    scale = largest / limit if quantizer.amax == "divide" else largest * (np.float32(1.0) / limit)
    if quantizer.scale == "float":
        return np.asarray(scale, np.float32)
    significand, exponent = np.frexp(scale)
    return np.asarray(np.ldexp(np.ones_like(scale), exponent - (significand == 0.5)), np.float32)


def coded(values: Float64, name: str, rounding: Rounding = "nearest") -> Float64:
    """float64 values rounded (to nearest-even) to the numbers of a quantised format, saturated; NaN stays NaN.

    Source: OCP OFP8 1.0, section 5 (roundTiesToEven; saturating conversion).
    """
    step = code_step(values, name)
    limit = CODES[name].max_value
    with np.errstate(invalid="ignore"):
        q: Float64 = np.clip(values, -2.0 * limit, 2.0 * limit)
        q /= step
        (np.rint if rounding == "nearest" else np.trunc)(q, out=q)
        q *= step
        return np.clip(q, -limit, limit, out=q)


def code_step(values: Float64, name: str) -> Float64:
    """Distance of neighbouring numbers of a quantised format at |values|: 2^(max(e, e_min) - precision + 1)."""
    code = CODES[name]
    values = np.asarray(values, np.float64)
    step: Float64 = np.empty(values.shape)
    np.bitwise_and(values.view(np.uint64), _EXPONENT_BITS, out=step.view(np.uint64))
    np.clip(step, 2.0**code.min_exponent, 2.0 ** np.floor(np.log2(code.max_value)), out=step)
    step *= 2.0 ** (1 - code.precision)
    return step


def requantized(estimate: Estimate, quantizer: Quantizer, given: float | None = None) -> tuple[Estimate, Float64]:
    """The estimate after a quantiser, and the size of a flip of each element, both of [n, K].

    About the true value: V + q^2/12, with q the step at that value. About the rounded reference: the flip law of
    `flipped`; and the largest element x_m of a group has an error too, which moves the scale: with float scales all of
    the group's values move in proportion, V = (x var(x_m)^1/2 / x_m)^2. A scale that is a power of two stays, unless
    x_m is so near to a boundary that its error carries it across: then all of the group is rounded to another grid,
    which is another one for int8, and for fp8 below the smallest normal number only. given: the scale of a static
    quantiser, which never moves.
    """
    about = quantized(estimate.value, quantizer, given)
    step = about.step(quantizer)
    if estimate.rare is None:
        return Estimate(estimate.value, estimate.dense + np.square(step) / 12.0), step
    moved = flipped(estimate, step)
    width = estimate.value.shape[1]
    if not width or quantizer.static:
        return moved._replace(value=about.value), step
    # Flips of the largest element before the quantiser are seldom; its usual error is what moves the scale.
    amax = np.take_along_axis(np.abs(estimate.value), about.largest, axis=1)
    sd = np.sqrt(np.take_along_axis(estimate.variance, about.largest, axis=1))
    group = quantizer.group or width
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if quantizer.scale == "float":
            share = np.where(amax > quantizer.eps, sd / amax, 0.0)
            dense = np.square(about.value * _spread(share, group, width))
            return Estimate(about.value, dense, moved.rare, moved.size), step
        chances = _crossing(amax, sd, quantizer)
        if not np.any(chances > NEVER):
            return moved._replace(value=about.value), step
        chance = _spread(chances, group, width)
        # Above a boundary the other scale is half as large, below it twice.
        ratio = np.maximum(amax, quantizer.eps) / _boundary(quantizer)
        other = _spread(about.scale * np.where(ratio > 2.0 ** np.rint(np.log2(ratio)), 0.5, 2.0), group, width)
        apart = np.abs(coded(estimate.value / other, quantizer.format, quantizer.rounding) * other - about.value)
    assert moved.rare is not None
    assert moved.size is not None
    rare, size = moved.rare + chance * np.square(apart), moved.size + chance * apart
    return Estimate(about.value, moved.dense, rare, size), step


def _crossing(amax: Float64, sd: Float64, quantizer: Quantizer) -> Float64:
    """Chance that an error of standard deviation `sd` carries amax across a boundary of the power-of-two scales."""
    boundary = _boundary(quantizer)
    ratio = np.maximum(amax, quantizer.eps) / boundary
    nearest = 2.0 ** np.rint(np.log2(ratio))
    distance = np.abs(ratio - nearest) * boundary
    sigmas = distance / np.where(sd > 0.0, sd, 1.0)
    return np.where(sd > 0.0, np.exp(-0.5 * np.square(sigmas)), 0.0)


def _boundary(quantizer: Quantizer) -> float:
    """An amax at which a power-of-two scale changes; the others are this times powers of two."""
    return CARRIES.get(quantizer.scale, CODES[quantizer.format].max_value)


def _spread(each: AnyArray, group: int, width: int) -> Float64:
    """Per group to per element: [n, groups] to [n, width]."""
    return np.repeat(each.astype(np.float64), group, axis=1)[:, :width]
