"""Mutants of static quantisers of activations, whose scales a kernel is given: a1_scale and a2_scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from moecheck.cases import Case
from moecheck.formats import Float64, to_float64
from moecheck.numerics import Numerics
from moecheck.quantizer import CODES, Quantizer

from .call import Call
from .quantiser_maths import Scales, codes, requantised, right_scale, with_requantised
from .registry import mutant

OP = "fused_experts"
Encode = Callable[[Float64, str], Float64]


def static(numerics: Numerics) -> bool:
    return numerics.a1_quant is not None and numerics.a1_quant.static


def given(case: Case) -> bool:
    """The scales are among the inputs."""
    quantization = case.spec.experts.quantization
    return quantization is not None and quantization.static_activations


def scales_of(call: Call) -> tuple[float, float]:
    """a1_scale and a2_scale."""
    first, second = (float(to_float64(call.inputs[name]).reshape(-1)[0]) for name in ("a1_scale", "a2_scale"))
    return first, second


def with_static(
    call: Call,
    contract: Numerics,
    by: tuple[float, float],
    times: tuple[float, float],
    encode: Encode = codes,
) -> Float64:
    """The output of a kernel that divides by some scales and multiplies by others. by, times: of x and of h."""

    def quantiser(divisor: float, factor: float) -> Callable[[Float64, Quantizer], Float64]:
        return partial(
            requantised,
            scale=lambda amax, q: np.full(amax.shape, divisor, np.float32),
            used=lambda s: np.full(s.shape, factor, np.float32),
            encode=encode,
        )

    x, h = (quantiser(divisor, factor) for divisor, factor in zip(by, times, strict=True))
    return with_requantised(call, contract, h, x)


def _of_scales(
    name: str,
    words: str,
    scales: Callable[[float, float], tuple[tuple[float, float], tuple[float, float]]],
    *sources: str,
    variant: str = "",
) -> None:
    expects = ("values", "statistics")

    @mutant(name, words, OP, variant=variant, under=static, when=given, sources=sources, expects=expects)
    def change(call: Call, contract: Numerics) -> Float64:
        return with_static(call, contract, *scales(*scales_of(call)))


_of_scales(
    "static_scales_exchanged",
    "the hidden states are quantised by the scale of the intermediate values, and these by theirs",
    lambda first, second: ((second, first), (second, first)),
    "vllm-project/vllm#27255",
)
_of_scales(
    "a2_scale=a1_scale",
    "the intermediate values are dequantised with the static scale of the hidden states",
    lambda first, second: ((first, second), (first, first)),
    "vllm-project/vllm#27255",
    variant="static",
)
_of_scales(
    "static_scale_not_multiplied",
    "the second GEMM's output is not multiplied by the scale of its input",
    lambda first, second: ((first, second), (first, 1.0)),
)
_of_scales(
    "static_scale_inverted",
    "the intermediate values are multiplied by their scale and divided by it again, instead of the other way round",
    lambda first, second: ((first, 1.0 / second), (first, 1.0 / second)),
)


@mutant(
    "static_scale_ignored",
    "scales are computed from each row although static ones are given",
    OP,
    under=static,
    when=given,
    expects=("values", "statistics"),
)
def static_scale_ignored(call: Call, contract: Numerics) -> Float64:
    def dynamic(rows: Float64, q: Quantizer) -> Float64:
        def scale(amax: Scales, q: Quantizer) -> Scales:
            return right_scale(amax, Quantizer(format=q.format))

        return requantised(rows, q, scale=scale)

    return with_requantised(call, contract, dynamic, dynamic)


@mutant(
    "no_saturate",
    "what exceeds the largest number of the format under a static scale becomes NaN",
    OP,
    variant="static",
    under=static,
    when=given,
    sources=("sgl-project/sglang#16622",),
)
def no_saturation(call: Call, contract: Numerics) -> Float64:
    def encode(values: Float64, name: str) -> Float64:
        return np.where(np.abs(values) >= CODES[name].max_value * (1 + 2.0**-5), np.nan, codes(values, name))

    scales = scales_of(call)
    return with_static(call, contract, scales, scales, encode)
