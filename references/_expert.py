"""One expert applied to its rows: z = W2 f(W1 x + b1) + b2, and the error of a kernel's z."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from moecheck.accumulators import ACCUMULATORS
from moecheck.formats import AnyArray, Float64, ulp
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._quantize import quantized, requantized
from ._stores import Estimate, biased, linear, linear_estimate, rounded, stored_or_kept
from .act_and_mul import activated, activated_estimate, factors, split


class ExpertArrays(Protocol):
    """A stack of one matrix per expert: an array [E, rows, columns], or an object that makes each matrix when asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, expert: int, /) -> AnyArray: ...


class Weights(NamedTuple):
    """One expert's float64 arrays. w13: [2I, H] or [I, H]. w2: [H, I]. b13: [2I] or [I]. b2: [H].

    a1, a2: the scales of static quantisers of the GEMMs' inputs, where these are given.
    """

    w13: Float64
    w2: Float64
    b13: Float64 | None
    b2: Float64 | None
    a1: float | None = None
    a2: float | None = None


def expert_output(x: Float64, weights: Weights, spec: ExpertSpec, stores: Numerics) -> Float64:
    """One expert's z, rounded at `a1_quant`, `before_bias`, `gate_up`, those of act_and_mul, `a2_quant`, `per_expert`.

    x: [n, H] float64. Returns [n, H].
    """
    if stores.a1_quant is not None:
        x = quantized(x, stores.a1_quant, weights.a1).value
    gate_up = rounded(linear(x, weights.w13, weights.b13, before_bias=stores.before_bias), stores.gate_up)
    h = activated(gate_up, spec, stores)
    if stores.a2_quant is not None:
        h = quantized(h, stores.a2_quant, weights.a2).value
    return rounded(linear(h, weights.w2, weights.b2, before_bias=stores.before_bias), stores.per_expert)


class EstimatedOutput(NamedTuple):
    """z of some rows, [n, H]. v_h, step: [n, I] fp32, variance of h and what a flip of its store moves it by. shared:
    [n, H], the part of V_z that comes from h. The three are None where rows are not asked for.
    """

    z: Estimate
    v_h: AnyArray | None
    step: AnyArray | None
    shared: Float64 | None


def expert_estimate(
    x: Estimate, weights: Weights, spec: ExpertSpec, stores: Numerics, *, exact_input: bool = True, rows: bool = True
) -> EstimatedOutput:
    """The estimate of z. x: estimate of [n, H]. exact_input: x has no error. rows: whether it is wanted what the
    columns of a row share.

    V_g,u = V(x W13^T) + stores; V_h as in act_and_mul; V_z = V(h W2^T) + stores, where V(x W^T) has the inputs' errors
    and the fp32 accumulation. Errors of different columns of h are taken as independent; each is shared by all of z.
    """
    before, accumulate = stores.before_bias, stores.accumulate
    if stores.a1_quant is not None:
        # a quantised exact input still is one for every kernel, though not for the true value
        exact_input = exact_input and x.rare is not None
        x, _ = requantized(x, stores.a1_quant, weights.a1)
    low = stores.gate_up != "fp32"
    y = linear_estimate(x, weights.w13, exact_input=exact_input, stored_low=low, accumulate=accumulate)
    gate_up = biased(y, weights.b13, before)
    gate_up = stored_or_kept(gate_up, stores.gate_up)
    h = activated_estimate(gate_up, spec, stores, averaged=True)
    step = np.zeros((1, 1))
    if stores.a2_quant is not None:
        h, step = requantized(h, stores.a2_quant, weights.a2)
    elif rows and x.rare is not None:
        step = _flip_of(h.value, gate_up.value, spec, stores)
    z = linear_estimate(h, weights.w2, accumulate=accumulate)
    if not rows:
        return EstimatedOutput(stored_or_kept(biased(z, weights.b2, before), stores.per_expert), None, None, None)
    # What accumulation adds to V_z, which columns do not share: its mean over a row of h and a row of w2.
    width = max(h.value.shape[1], 1)
    bridge, _ = ACCUMULATORS[accumulate].variance_factors(width)
    squares = np.einsum("hi,hi->h", weights.w2, weights.w2) * (bridge / width)
    own = np.einsum("ni,ni->n", h.value, h.value)[:, None] * squares
    shared = np.maximum(z.variance - own, 0.0)
    z = stored_or_kept(biased(z, weights.b2, before), stores.per_expert)
    return EstimatedOutput(z, h.variance.astype(np.float32), step.astype(np.float32), shared)


def _flip_of(h: Float64, gate_up: Float64, spec: ExpertSpec, stores: Numerics) -> Float64:
    """What one flip of a stored g, u, act(g) or h moves h by at most, [n, I]."""
    step = np.zeros(h.shape) if stores.act_times_up == "fp32" else ulp(h, stores.act_times_up)
    if stores.gate_up == "fp32" and stores.act == "fp32":
        return step
    f = factors(gate_up, spec)
    if stores.gate_up != "fp32":
        of_gate, of_up = split(ulp(gate_up, stores.gate_up), spec)
        step = np.maximum(step, np.abs(f.da * f.m) * of_gate)
        if of_up is not None:
            step = np.maximum(step, np.abs(f.a * f.dm) * of_up)
    if stores.act != "fp32":
        step = np.maximum(step, np.abs(f.m) * ulp(f.a, stores.act))
    return step


def expert_slope(x: Float64, dx: Float64, weights: Weights, spec: ExpertSpec) -> Float64:
    """Directional derivative of z at x along dx: W2 (a' m dg + a m' du). x, dx: [n, H] float64. Returns [n, H]."""
    f = factors(linear(x, weights.w13, weights.b13), spec)
    dg, du = split(linear(dx, weights.w13), spec)
    dh = f.da * f.m * dg
    if du is not None:
        dh += f.a * f.dm * du
    return linear(dh, weights.w2)
