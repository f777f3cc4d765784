"""Quantisers of activations whose parts can be exchanged, for mutants that no contract can express."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moecheck.formats import Float64, round_to
from moecheck.numerics import Numerics
from moecheck.quantizer import CODES, Quantizer

from .call import Call
from .expert_maths import Maths, right_hidden, right_product, value_by

Scales = npt.NDArray[np.float32]


def right_scale(amax: Scales, q: Quantizer) -> Scales:
    """max(amax, eps) / max_value, rounded up to a power of two where the quantiser says so."""
    scale: Scales = np.asarray(np.maximum(amax, np.float32(q.eps)) / np.float32(CODES[q.format].max_value), np.float32)
    return np.asarray(_power_above(scale) if q.scale == "power_of_two" else scale, np.float32)


def codes(values: Float64, name: str) -> Float64:
    """Values rounded to nearest-even to a format's numbers, saturated."""
    code = CODES[name]
    _, exponent = np.frexp(values)
    step = np.ldexp(1.0, np.maximum(exponent - 1, code.min_exponent) - code.precision + 1)
    return np.asarray(np.clip(np.rint(values / step) * step, -code.max_value, code.max_value), np.float64)


def requantised(
    x: Float64,
    q: Quantizer,
    *,
    scale: Callable[..., Scales] = right_scale,
    used: Callable[[Scales], Scales] | None = None,
    encode: Callable[[Float64, str], Float64] = codes,
) -> Float64:
    """Codes times scales of x [n, K]. scale: of (amax, quantiser). used: the scales that the GEMM multiplies with.

    encode: of (x / scale, format).
    """
    width = x.shape[1]
    group = q.group or max(width, 1)
    groups = np.pad(x.astype(np.float32), ((0, 0), (0, -width % group))).reshape(len(x), -1, group)
    s = scale(np.abs(groups).max(axis=2, initial=0.0), q)
    with np.errstate(all="ignore"):
        coded = encode((groups / s[:, :, None]).astype(np.float64), q.format)
    s = s if used is None else used(s)
    out: Float64 = (coded * s.astype(np.float64)[:, :, None]).reshape(len(x), -1)[:, :width]
    return out


def _power_above(scale: Scales) -> Scales:
    significand, exponent = np.frexp(scale)
    return np.asarray(np.ldexp(np.ones_like(scale), exponent - (significand == 0.5)).astype(np.float32), np.float32)


def with_requantised(
    call: Call,
    contract: Numerics | None,
    h: Callable[[Float64, Quantizer], Float64] = requantised,
    x: Callable[[Float64, Quantizer], Float64] = requantised,
) -> Float64:
    """The output under a contract whose quantisers, of x and of h, are these; its stores are as declared.

    Stores at `act`, `weighted` and before biases are left out: no contract that is tried has them.
    """
    assert contract is not None
    stores = contract.resolve(call.case.dtype)

    def first(rows: Float64, w: Float64) -> Float64:
        product = right_product(rows if stores.a1_quant is None else x(rows, stores.a1_quant), w)
        return product if call.case.spec.experts.w13_bias else _stored(product, stores.gate_up)

    def second(hidden: Float64, w: Float64) -> Float64:
        product = right_product(hidden if stores.a2_quant is None else h(hidden, stores.a2_quant), w)
        return product if call.case.spec.experts.w2_bias else _stored(product, stores.per_expert)

    def between(maths: Maths, gate: Float64, up: Float64) -> Float64:
        if call.case.spec.experts.w13_bias:
            gate, up = _stored(gate, stores.gate_up), _stored(up, stores.gate_up)
        return _stored(right_hidden(maths, gate, up), stores.act_times_up)

    return value_by(call, between, first=first, second=second, latent=lambda rows: _stored(rows, stores.gate_up))


def _stored(values: Float64, name: str) -> Float64:
    return values if name == "fp32" else round_to(values, name)
