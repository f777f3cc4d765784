"""How far a kernel's output can lie from the mathematics at most: every rounding at its worst, none averaged out.

Looser than sigma by far, so nothing is accepted on it; an output beyond it is proven wrong.
Notation: gamma(n) = n v / (1 - n v) bounds the relative error of n roundings in a row and of a sum of n terms in any
order (N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1), with v = 2^-23: fp32
accumulators may truncate. Numbers below the smallest normal one may be flushed to zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecheck.accumulators import ACCUMULATORS
from moecheck.formats import FORMATS, AnyArray, Float64
from moecheck.numerics import Numerics
from moecheck.quantizer import CODES, Quantizer
from moecheck.spec import ExpertSpec

from ._activation import activation_terms, tanh_limited
from ._expert import ExpertArrays, Weights
from ._experts_of_slots import rows_of_experts
from ._stores import contract, decode, linear
from .act_and_mul import split
from .fused_experts import weights_of

U32 = 2.0**-24
TRUNCATED = 2.0**-23
FLUSHED = 2.0**-126
EVALUATION = 16.0 * U32  # of exp, erf or tanh and the few roundings around it, relative to |act(g)| + |g|


class Bounded(NamedTuple):
    """A true value, and a bound on a kernel's error in it, arrays of one shape."""

    value: Float64
    error: Float64

    @property
    def largest(self) -> Float64:
        """What the kernel's absolute value can be at most."""
        return np.abs(self.value) + self.error


def act_and_mul(*, x: AnyArray, spec: ExpertSpec, numerics: Numerics | None, dtype: str) -> Float64:
    """Bound on |out - h|, [R, I]. Arguments as in act_and_mul.estimate."""
    stores = contract(numerics, dtype, x, undeclared=Numerics())
    return _stored(_activated(_exact(decode(x)), spec, stores), stores.out).error


def grouped_gemm(
    *,
    x: AnyArray,
    w: ExpertArrays,
    expert_ends: AnyArray,
    bias: AnyArray | None = None,
    numerics: Numerics | None,
    dtype: str,
) -> Float64:
    """Bound on |out - y|, [R, n], NaN beyond the last group. Arguments as in grouped_gemm.estimate."""
    stores = contract(numerics, dtype, x, undeclared=Numerics())
    error = np.full((x.shape[0], w.shape[1]), np.nan)
    start = 0
    for expert, end in enumerate(int(end) for end in expert_ends):
        if end > start:
            b = None if bias is None else decode(bias[expert])
            y = _linear(_exact(decode(x[start:end])), decode(w[expert]), b, stores)
            error[start:end] = _stored(y, stores.out).error
        start = end
    return error


def unpermute(
    *,
    permuted: AnyArray,
    topk_weights: AnyArray,
    inv_permuted_idx: AnyArray,
    numerics: Numerics | None,
    dtype: str,
) -> Float64:
    """Bound on |out - y|, [T, H]. Arguments as in unpermute.estimate."""
    stores = contract(numerics, dtype, permuted, undeclared=Numerics())
    scale = _stored_weights(decode(topk_weights), stores)
    total = _Total(len(topk_weights), permuted.shape[1], topk_weights.shape[1])
    for tokens, slots in zip(*np.nonzero(inv_permuted_idx >= 0), strict=True):
        z = _exact(decode(permuted[inv_permuted_idx[tokens, slots]]))
        total.add(tokens, _stored(_product(z, Bounded(*(part[tokens, slots] for part in scale))), stores.weighted))
    return total.error(stores)


def fused_experts(
    *,
    hidden_states: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    topk_weights: AnyArray,
    topk_ids: AnyArray,
    spec: ExpertSpec,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    expert_map: AnyArray | None = None,
    numerics: Numerics | None,
    dtype: str,
) -> Float64:
    """Bound on |out - y|, [T, H]. Arguments as in fused_experts.estimate."""
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    x = decode(hidden_states)
    scale = _stored_weights(decode(topk_weights), stores)
    total = _Total(x.shape[0], x.shape[1], topk_ids.shape[1])
    for expert, tokens, slots in rows_of_experts(topk_ids, expert_map):
        arrays = weights_of(expert, w13, w2, w13_bias, w2_bias)
        w = Bounded(*(part[tokens, slots][:, None] for part in scale))
        rows = _exact(x[tokens])
        if spec.weight_on_input:
            y = _expert(_stored(_product(rows, w), stores.weighted), arrays, spec, stores)
        else:
            y = _stored(_product(_expert(rows, arrays, spec, stores), w), stores.weighted)
        for i, token in enumerate(tokens):
            total.add(token, Bounded(y.value[i], y.error[i]))
    return total.error(stores)


class _Total:
    """The sum over a token's experts in any order, at its worst."""

    def __init__(self, tokens: int, columns: int, terms: int) -> None:
        self._sizes, self._errors = np.zeros((tokens, columns)), np.zeros((tokens, columns))
        self._value, self._terms = np.zeros((tokens, columns)), terms

    def add(self, token: int, y: Bounded) -> None:
        self._value[token] += y.value
        self._sizes[token] += np.abs(y.value)
        self._errors[token] += y.error

    def error(self, stores: Numerics) -> Float64:
        partial = "fp32" if stores.combine_order == "tree" else stores.combine
        each = self._terms * (_unit(partial) + TRUNCATED)
        rounding = each / (1.0 - each) * (self._sizes + self._errors)
        out = _stored(Bounded(self._value, self._errors + rounding), stores.out).error
        return np.where(self._sizes > 0.0, out, 0.0)


def _expert(x: Bounded, weights: Weights, spec: ExpertSpec, stores: Numerics) -> Bounded:
    x = _requantised(x, stores.a1_quant)
    gate_up = _stored(_linear(x, weights.w13, weights.b13, stores), stores.gate_up)
    h = _requantised(_activated(gate_up, spec, stores), stores.a2_quant)
    return _stored(_linear(h, weights.w2, weights.b2, stores), stores.per_expert)


def _requantised(x: Bounded, quantizer: Quantizer | None) -> Bounded:
    """A rounding to few bits: half a step of each value, or of the subnormals, whose step follows the largest value.

    A power-of-two scale is up to twice as large. Scale, quotient and saturation are off by a few fp32 roundings of it.
    """
    if quantizer is None or not x.value.size:
        return x
    code = CODES[quantizer.format]
    largest = np.maximum(np.max(x.largest, axis=1, keepdims=True), quantizer.eps)
    scale = largest / code.max_value * (2.0 if quantizer.scale == "power_of_two" else 1.0)
    least = 2.0 ** (code.min_exponent - code.precision) * scale
    return Bounded(x.value, x.error + 2.0**-code.precision * x.largest + least + 8.0 * TRUNCATED * largest)


def _linear(x: Bounded, w: Float64, bias: Float64 | None, stores: Numerics) -> Bounded:
    """Errors of the inputs pass times |W|; a sum of K terms in any order is off by gamma(K + 1) of its absolute sum."""
    y = Bounded(
        linear(x.value, w),
        linear(x.error, np.abs(w))
        + _gamma(w.shape[1] + 1, stores.accumulate) * linear(x.largest, np.abs(w))
        + w.shape[1] * FLUSHED,
    )
    if bias is None:
        return y
    y = _stored(y, stores.before_bias)
    value = y.value + bias
    return Bounded(value, y.error + U32 * (np.abs(value) + y.error))


def _activated(x: Bounded, spec: ExpertSpec, stores: Numerics) -> Bounded:
    """The product a m, a = act(g), m = u + beta. Clamps move nothing further apart."""
    (gate, up), (gate_error, up_error) = split(x.value, spec), split(x.error, spec)
    limit = spec.swiglu_limit
    if limit is not None and spec.limit_position == "before":
        gate = np.minimum(gate, limit)
    terms = activation_terms(gate, spec)
    slope = np.abs(terms.derivative) + _curvature(spec) * gate_error
    evaluation = EVALUATION * (np.abs(terms.value) + np.abs(gate) + gate_error) + FLUSHED
    if stores.sigmoid != "fp32":  # alpha g and its sigmoid stored: |g| s off by a rounding, and |g|^2 / 4 of one
        evaluation = evaluation + _unit(stores.sigmoid) * (np.abs(gate) + 0.25 * spec.swiglu_alpha * np.square(gate))
    a = _stored(Bounded(terms.value, slope * gate_error + evaluation), stores.act)
    if limit is not None and spec.limit_position == "after":
        a = Bounded(np.minimum(a.value, limit), a.error)
    if up is None or up_error is None:
        return _stored(a, stores.act_times_up)
    m = Bounded(up if limit is None else np.clip(up, -limit, limit), up_error)
    if spec.situ_up_beta is not None:  # its slope is 1 at most
        value = tanh_limited(m.value, spec.situ_up_beta)
        m = Bounded(value, m.error + EVALUATION * (np.abs(value) + np.abs(m.value) + m.error) + FLUSHED)
    if spec.changes_up:
        m = _stored(Bounded(m.value + spec.swiglu_beta, m.error), stores.up)
    return _stored(_product(a, m), stores.act_times_up)


def _curvature(spec: ExpertSpec) -> float:
    """Largest |act''|: silu alpha / 2, gelu sqrt(2 / pi), its tanh form a little more, relu2 2, situ by its product."""
    if spec.activation == "silu":
        return 0.5 * spec.swiglu_alpha
    return {"gelu": 0.8, "gelu_tanh": 1.0, "relu2": 2.0}.get(
        spec.activation, 0.77 / spec.situ_beta + 0.5 + 0.1 * spec.situ_beta
    )


def _product(a: Bounded, b: Bounded) -> Bounded:
    value = a.value * b.value
    error = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
    return Bounded(value, error + U32 * (np.abs(value) + error) + FLUSHED)


def _stored(x: Bounded, name: str) -> Bounded:
    return Bounded(x.value, x.error + _unit(name) * x.largest + max(FLUSHED, _smallest(name)))


def _stored_weights(weights: Float64, stores: Numerics) -> Bounded:
    exact = _exact(weights)
    return exact if stores.topk_weights == "fp32" else _stored(exact, stores.topk_weights)


def _exact(value: Float64) -> Bounded:
    return Bounded(value, np.zeros(value.shape))


def _unit(name: str) -> float:
    """Largest relative error of one rounding."""
    return float(2.0 ** -FORMATS[name].precision)


def _smallest(name: str) -> float:
    """Distance of the subnormal numbers."""
    fmt = FORMATS[name]
    return float(2.0 ** (fmt.min_exponent - fmt.precision + 1))


def _gamma(count: int, profile: str) -> float:
    """Relative error of a sum of `count` terms; infinite where the accumulator keeps too few bits to say anything."""
    unit = ACCUMULATORS[profile]
    together = min(count, unit.promoted_every or count)
    each = together * max(2.0**-unit.fraction_bits, TRUNCATED) + (count * TRUNCATED if together < count else 0.0)
    return each / (1.0 - each) if each < 1.0 else np.inf
