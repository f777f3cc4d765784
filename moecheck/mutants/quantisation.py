"""Mutants of the quantisers of activations: scales of the wrong size, place or origin, codes of another format.

They are bugs in what a contract declares, so each is given the contract and has a meaning only under some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from moecheck.cases import Case
from moecheck.formats import Float64, to_float64
from moecheck.numerics import Numerics
from moecheck.quantizer import CODES, Quantizer

from .call import Call, with_inputs
from .quantiser_maths import Scales, codes, requantised, right_scale, with_requantised
from .registry import mutant

EXPERTS = ("fused_experts", "moe_layer")
E4M3 = "fp8_e4m3fn"
STATISTICAL = ("values", "statistics")


def requantises_h(numerics: Numerics) -> bool:
    """By scales of its own, as all of these mutants suppose."""
    return numerics.a2_quant is not None and not numerics.a2_quant.static


def in_groups(numerics: Numerics) -> bool:
    return numerics.a2_quant is not None and numerics.a2_quant.group > 0


def powers_of_two(numerics: Numerics) -> bool:
    return numerics.a2_quant is not None and numerics.a2_quant.scale == "power_of_two"


def float_scales(numerics: Numerics) -> bool:
    return requantises_h(numerics) and numerics.a2_quant is not None and numerics.a2_quant.scale == "float"


def fp8(numerics: Numerics) -> bool:
    return requantises_h(numerics) and numerics.a2_quant is not None and numerics.a2_quant.format == E4M3


def both(numerics: Numerics) -> bool:
    return of_input(numerics) and requantises_h(numerics)


def of_input(numerics: Numerics) -> bool:
    return numerics.a1_quant is not None and not numerics.a1_quant.static


def several_groups(case: Case) -> bool:
    """Rows of h hold more than one group of the smallest size that contracts use."""
    return case.intermediate_size > 32


def _of_scale(
    name: str,
    words: str,
    scale: Callable[..., Scales],
    under: Callable[[Numerics], bool],
    *sources: str,
    used: Callable[[Scales], Scales] | None = None,
    when: Callable[[Case], bool] | None = None,
) -> None:
    @mutant(name, words, *EXPERTS, under=under, when=when, sources=sources, expects=STATISTICAL)
    def change(call: Call, contract: Numerics) -> Float64:
        return with_requantised(call, contract, partial(requantised, scale=scale, used=used))


def _rounded_down(amax: Scales, q: Quantizer) -> Scales:
    scale = np.maximum(amax, np.float32(q.eps)) / np.float32(CODES[q.format].max_value)
    return np.asarray(np.ldexp(np.ones_like(scale), np.frexp(scale)[1] - 1).astype(np.float32), np.float32)


def _power_by_log2(amax: Scales, q: Quantizer) -> Scales:
    """2 ** round(log2 s): half of the scales come out at half their size."""
    scale = np.maximum(amax, np.float32(q.eps)) / np.float32(CODES[q.format].max_value)
    return np.exp2(np.rint(np.log2(scale))).astype(np.float32)


def _read_as_power(scales: Scales) -> Scales:
    """What is left of an fp32 scale whose exponent bits alone are read."""
    return np.asarray(np.ldexp(np.ones_like(scales), np.frexp(scales)[1] - 1).astype(np.float32), np.float32)


def _flushed(scales: Scales) -> Scales:
    """Scales below the middle of those in use come out as 0, as of a format with too few exponents."""
    known = scales[scales > 0]
    least = np.exp2(np.floor(np.log2(np.median(known)))) if known.size else 0.0
    return np.where(scales < least, np.float32(0), scales)


_of_scale(
    "ue8m0_floor",
    "scales are rounded down to powers of two instead of up, so that the largest values saturate",
    _rounded_down,
    powers_of_two,
    "vllm-project/vllm#43557",
    "vllm-project/vllm#22399",
)
_of_scale(
    "log2_round",
    "a scale's power of two is taken from a rounded logarithm",
    _power_by_log2,
    powers_of_two,
    "sgl-project/sglang#29956",
)
_of_scale(
    "scale_read_as_e8m0",
    "fp32 scales are read as powers of two: the significand is cut off",
    right_scale,
    float_scales,
    "vllm-project/vllm#38083",
    used=_read_as_power,
)
_of_scale("scale_half(2x)", "the GEMM multiplies with twice the scale", right_scale, requantises_h,
          "sgl-project/sglang#29956", used=lambda s: s * np.float32(2))  # fmt: skip
_of_scale(
    "scale_underflow",
    "small scales are flushed to 0",
    right_scale,
    requantises_h,
    "vllm-project/vllm#34577",
    "vllm-project/vllm#37502",
    used=_flushed,
)
_of_scale(
    "scale_idx_off_by_block",
    "each group is multiplied with the scale of the next one",
    right_scale,
    in_groups,
    "vllm-project/vllm#52997",
    "ROCm/aiter#5233",
    used=lambda s: np.roll(s, -1, axis=1),
    when=lambda case: case.intermediate_size > 128,
)
_of_scale(
    "scale_of_first_block",
    "every group is multiplied with the scale of the first one: the pointer does not advance",
    right_scale,
    in_groups,
    "ROCm/rocm-libraries#7920",
    used=lambda s: np.broadcast_to(s[:, :1], s.shape),
    when=lambda case: case.intermediate_size > 128,
)
_of_scale(
    "scale_of_next_row",
    "each row is multiplied with the scales of the next one",
    right_scale,
    requantises_h,
    "vllm-project/vllm#47910",
    used=lambda s: np.roll(s, -1, axis=0),
)
_of_scale(
    "max_240",
    "scales are taken for a largest number of 240 instead of 448",
    lambda amax, q: np.maximum(amax, np.float32(q.eps)) / np.float32(240.0),
    lambda numerics: fp8(numerics) and float_scales(numerics),
)
_of_scale(
    "scale_per_row",
    "one scale per row instead of one per group",
    lambda amax, q: np.broadcast_to(right_scale(amax, q).max(axis=1, keepdims=True), amax.shape),
    in_groups,
    when=lambda case: case.intermediate_size > 128,
)
_of_scale(
    "scale_of_mean",
    "a scale is taken from the mean instead of the largest magnitude of its rows",
    lambda amax, q: np.broadcast_to(right_scale(amax, q).mean(axis=0, keepdims=True), amax.shape).astype(np.float32),
    requantises_h,
    "vllm-project/vllm#37502",
)
_of_scale(
    "global_scale_local_max",
    "a scale is the largest of this expert's rows alone, shared by all of them",
    lambda amax, q: np.broadcast_to(right_scale(amax, q).max(axis=0, keepdims=True), amax.shape),
    requantises_h,
    "vllm-project/vllm#37322",
    "sgl-project/sglang#10296",
)


@mutant(
    "no_saturate",
    "what exceeds the largest number of the format becomes NaN, the scales being rounded down",
    *EXPERTS,
    under=lambda numerics: powers_of_two(numerics) and fp8(numerics),
    sources=("sgl-project/sglang#16622",),
)
def no_saturation(call: Call, contract: Numerics) -> Float64:
    def encode(values: Float64, name: str) -> Float64:
        return np.where(np.abs(values) >= CODES[name].max_value * (1 + 2.0**-5), np.nan, codes(values, name))

    return with_requantised(call, contract, partial(requantised, scale=_rounded_down, encode=encode))


@mutant(
    "zero_amax_nan",
    "the scale of a row of zeros is 0, and 0 / 0 is NaN",
    *EXPERTS,
    under=of_input,
    when=lambda case: case.stratum == "zero_rows",
    sources=("sgl-project/sglang#16622", "vllm-project/tpu-inference#1880"),
)
def zero_amax(call: Call, contract: Numerics) -> Float64:
    def scale(amax: Scales, q: Quantizer) -> Scales:
        return np.where(amax == 0, np.float32(0), right_scale(amax, q))

    return with_requantised(call, contract, x=partial(requantised, scale=scale))


@mutant(
    "a2_scale=a1_scale",
    "the intermediate values are dequantised with the scale of the hidden states",
    *EXPERTS,
    under=lambda numerics: both(numerics) and numerics.a1_quant is not None and numerics.a1_quant.group == 0,
    sources=("vllm-project/vllm#27255",),
)
def scale_of_input(call: Call, contract: Numerics) -> Float64:
    """The rows that reach the second GEMM are those that the first one was given last."""
    assert contract is not None
    scales: list[Scales] = []

    def x(rows: Float64, q: Quantizer) -> Float64:
        def note(amax: Scales, q: Quantizer) -> Scales:
            scales[:] = [right_scale(amax, q)]
            return scales[0]

        return requantised(rows, q, scale=note)

    return with_requantised(call, contract, partial(requantised, used=lambda s: scales[0]), x)


@mutant(
    "amax_incl_pad",
    "the largest magnitude is taken over a buffer that still holds larger rows of an earlier call",
    *EXPERTS,
    under=requantises_h,
    sources=("vllm-project/vllm#20167",),
    expects=STATISTICAL,
)
def amax_of_garbage(call: Call, contract: Numerics) -> Float64:
    def scale(amax: Scales, q: Quantizer) -> Scales:
        return right_scale(np.maximum(amax, 3.0 * amax.max(initial=0.0)).astype(np.float32), q)

    return with_requantised(call, contract, partial(requantised, scale=scale))


@mutant(
    "codes_truncated",
    "codes are cut off towards zero instead of rounded to nearest",
    *EXPERTS,
    under=requantises_h,
    expects=STATISTICAL,
)
def codes_truncated(call: Call, contract: Numerics) -> Float64:
    def encode(values: Float64, name: str) -> Float64:
        code = CODES[name]
        step = np.ldexp(1.0, np.maximum(np.frexp(values)[1] - 1, code.min_exponent) - code.precision + 1)
        return np.asarray(np.clip(np.trunc(values / step) * step, -code.max_value, code.max_value), np.float64)

    return with_requantised(call, contract, partial(requantised, encode=encode))


@mutant(
    "e5m2_for_e4m3",
    "codes are those of e5m2 instead of e4m3",
    *EXPERTS,
    under=fp8,
    expects=STATISTICAL,
)
def other_format(call: Call, contract: Numerics) -> Float64:
    return with_requantised(call, contract, partial(requantised, encode=lambda v, name: codes(v, "fp8_e5m2")))


@mutant(
    "not_requantised",
    "the intermediate values are not requantised at all",
    *EXPERTS,
    under=requantises_h,
    expects=STATISTICAL,
)
def not_requantised(call: Call, contract: Numerics) -> Float64:
    return with_requantised(call, contract, lambda h, q: h)


@mutant(
    "requantised_twice",
    "the intermediate values are requantised once more, with scales of their own",
    *EXPERTS,
    under=lambda numerics: (
        requantises_h(numerics) and numerics.a2_quant is not None and numerics.a2_quant.format == E4M3
    ),
    expects=STATISTICAL,
)
def requantised_twice(call: Call, contract: Numerics) -> Float64:
    def h(hidden: Float64, q: Quantizer) -> Float64:
        return requantised(requantised(hidden, q), replace(q, group=0, format="int8", scale="float"))

    return with_requantised(call, contract, h)


@mutant(
    "bias_before_dequant",
    "the first bias is added before the scale is multiplied: (acc + b) s instead of acc s + b",
    "fused_experts",
    under=lambda numerics: of_input(numerics) and numerics.a1_quant is not None and numerics.a1_quant.group == 0,
    when=lambda case: case.spec.experts.w13_bias,
    sources=("vllm-project/vllm#31676",),
)
def bias_before_dequantisation(call: Call, contract: Numerics) -> Float64:
    """(x W^T + b) s = [q s, s] [W, b]^T: the bias is one more column of the matrix, the scale one more input."""
    bias = to_float64(call.inputs["w13_bias"])
    widened = np.concatenate([to_float64(call.inputs["w13"]), bias[:, :, None]], axis=2)

    def x(rows: Float64, q: Quantizer) -> Float64:
        scale = right_scale(np.abs(rows.astype(np.float32)).max(axis=1, keepdims=True, initial=0.0), q)
        return np.concatenate([requantised(rows, q), scale.astype(np.float64)], axis=1)

    return with_requantised(with_inputs(call, w13=widened, w13_bias=None), contract, x=x)
