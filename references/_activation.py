"""The activation functions of experts: value, derivative, and how exactly a kernel evaluates them in fp32."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecheck.formats import Float64, ulp
from moecheck.spec import ExpertSpec

from ._erf import erfc
from ._stores import KEPT, Estimate, product, rounded, stored

_SQRT_2_OVER_PI = float(np.sqrt(2.0 / np.pi))
_CUBIC = 0.044715
# exp, tanh and erf of kernels are off by up to two fp32 ulps; taken as three standard deviations.
_SMALLEST_NORMAL = 2.0**-126
_FUNCTION_ULPS = 2.0 / 3.0


def activation(g: Float64, spec: ExpertSpec, *, sigmoid_format: str = "fp32") -> Float64:
    """act(g), elementwise in float64. g: any shape. NaN stays NaN; silu(-Inf) is NaN, as -Inf * 0 is.

    sigmoid_format: as Numerics.sigmoid: alpha g and sigmoid(alpha g) of silu rounded on their own.

    silu: g sigmoid(alpha g) (Ramachandran et al. 2017, arXiv:1710.05941; alpha as in GPT-OSS).
    gelu: g (1 + erf(g / sqrt 2)) / 2; gelu_tanh: g (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))) / 2 (Hendrycks and Gimpel
    2016, arXiv:1606.08415). relu2: max(g, 0)^2 (So et al. 2021, arXiv:2109.08668).
    situ: beta tanh(g / beta) sigmoid(g) (Kimi-K3).
    1 + erf(v) is computed as erfc(-v) and 1 + tanh(v) as 2 sigmoid(2v), which do not cancel.
    """
    if spec.activation == "silu":
        return g * rounded(sigmoid(rounded(spec.swiglu_alpha * g, sigmoid_format)), sigmoid_format)
    if spec.activation == "gelu":
        return 0.5 * g * erfc(-g / np.sqrt(2.0))
    if spec.activation == "gelu_tanh":
        return g * sigmoid(2.0 * _tanh_argument(g))
    if spec.activation == "relu2":
        return np.square(np.maximum(g, 0.0))
    value: Float64 = spec.situ_beta * np.tanh(g / spec.situ_beta) * sigmoid(g)
    return value


def tanh_limited(u: Float64, beta: float) -> Float64:
    """What situ makes of u where it has a second beta (Kimi-K3): beta tanh(u / beta), elementwise in float64."""
    value: Float64 = beta * np.tanh(u / beta)
    return value


def tanh_limited_estimate(u: Estimate, beta: float) -> Estimate:
    """The estimate of beta tanh(u / beta): slope 1 - tanh^2; quotient, tanh and product are each rounded in fp32."""
    value = tanh_limited(u.value, beta)
    slope = 1.0 - np.square(value / beta)
    limited = u.through(value, slope)
    rounding = _exact_rounding(value)
    evaluation = rounding * (12.0 * _FUNCTION_ULPS**2 + 1.0) + np.square(slope) * _exact_rounding(u.value)
    return limited._replace(dense=limited.dense + evaluation)


class Terms(NamedTuple):
    """act(g), its derivative, and the variance of act(g) as a kernel computes it in fp32 from an exact g."""

    value: Float64
    derivative: Float64
    evaluation: Float64


def activation_terms(g: Float64, spec: ExpertSpec, *, averaged: bool = False) -> Terms:
    """Value, derivative d act / dg and evaluation variance, elementwise in float64.

    averaged: an fp32 ulp squared is taken as its average over significands, which is good enough where sums or coarser
    stores follow.

    Evaluation variance. relu2: one product. Others: the function's own error (2 fp32 ulps at most), its argument
    rounded to fp32, and two factors more, each rounded. The two gelu's function is q in g (1 + q) / 2, where 1 + q
    cancels for g < 0; erf is off by 2 ulps of 1, not of q, for fp32 libraries approximate it to 1.5e-7 (Abramowitz and
    Stegun, formula 7.1.26).
    """
    value, slope = value_and_derivative(g, spec)
    rounding_of = _average_rounding if averaged else _exact_rounding
    rounding = rounding_of(value)
    if spec.activation == "relu2":
        return Terms(value, slope, rounding)
    argument = np.square(slope)
    argument *= rounding_of(g)
    if spec.activation == "gelu":
        function = np.square(g * (0.5 * _FUNCTION_ULPS * float(ulp(np.ones(1), "fp32")[0])))
    elif spec.activation == "gelu_tanh":
        nonzero = np.where(g == 0.0, 1.0, g)
        q = np.where(g == 0.0, 0.0, 2.0 * value / nonzero - 1.0)
        function = np.square(0.5 * g * _FUNCTION_ULPS * ulp(q, "fp32"))
    else:
        # A sigmoid below the smallest normal fp32 number, or one whose exp(-g) overflows, may come out as 0.
        function = rounding * (12.0 * _FUNCTION_ULPS**2)
        function += np.square(g * _SMALLEST_NORMAL)
    rounding *= 2.0
    rounding += function
    rounding += argument
    return Terms(value, slope, rounding)


def activation_estimate(
    g: Estimate, spec: ExpertSpec, *, sigmoid_format: str = "fp32", averaged: bool = False
) -> Estimate:
    """The estimate of act(g); sigmoid_format: as Numerics.sigmoid. averaged: as in activation_terms."""
    if sigmoid_format == "fp32" or spec.activation != "silu":
        terms = activation_terms(g.value, spec, averaged=averaged)
        a = g.through(terms.value, terms.derivative)
        return a._replace(dense=terms.evaluation if a.exact else a.dense + terms.evaluation)
    argument = g if spec.swiglu_alpha == 1.0 else stored(g.scaled(spec.swiglu_alpha), sigmoid_format)
    s = sigmoid(argument.value)
    gate = argument.through(s, s * (1.0 - s))
    # As above: a sigmoid below the smallest normal number may come out as 0.
    evaluation = np.square(_FUNCTION_ULPS * ulp(s, "fp32")) + np.square(_SMALLEST_NORMAL)
    gate = gate._replace(dense=gate.dense + evaluation)
    return product(g, stored(gate, sigmoid_format))


def _exact_rounding(values: Float64) -> Float64:
    """Variance of a rounding to fp32, ulp^2 / 12."""
    step = ulp(values, "fp32")
    np.square(step, out=step)
    step /= 12.0
    return step


def _average_rounding(values: Float64) -> Float64:
    """Its average over numbers of this size, evenly spread on a log scale."""
    square = np.square(values)
    square *= KEPT
    return square


def value_and_derivative(g: Float64, spec: ExpertSpec) -> tuple[Float64, Float64]:
    if spec.activation == "silu":
        s = sigmoid(spec.swiglu_alpha * g)
        value = g * s
        return value, s + spec.swiglu_alpha * value * (1.0 - s)
    if spec.activation == "gelu":
        share: Float64 = 0.5 * erfc(-g / np.sqrt(2.0))
        return g * share, share + g * (np.exp(-0.5 * g * g) / np.sqrt(2.0 * np.pi))
    if spec.activation == "gelu_tanh":
        s = sigmoid(2.0 * _tanh_argument(g))
        value = g * s
        return value, s + 2.0 * value * (1.0 - s) * _SQRT_2_OVER_PI * (1.0 + 3.0 * _CUBIC * g * g)
    if spec.activation == "relu2":
        positive = np.maximum(g, 0.0)
        return np.square(positive), 2.0 * positive
    s, t = sigmoid(g), np.tanh(g / spec.situ_beta)
    return spec.situ_beta * t * s, (1.0 - t * t) * s + spec.situ_beta * t * s * (1.0 - s)


def sigmoid(x: Float64) -> Float64:
    """1 / (1 + exp(-x)), elementwise in float64, in one new array."""
    out = np.negative(x)
    with np.errstate(over="ignore"):  # exp(-x) = Inf gives the right 0
        np.exp(out, out=out)
    out += 1.0
    return np.reciprocal(out, out=out)


def _tanh_argument(g: Float64) -> Float64:
    return _SQRT_2_OVER_PI * (g + _CUBIC * g * g * g)
