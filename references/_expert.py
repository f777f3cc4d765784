"""One expert applied to its rows: z = W2 f(W1 x + b1) + b2, and the error of a kernel's z."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from moecheck.accumulators import ACCUMULATORS
from moecheck.formats import AnyArray, Float64, ulp
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._errors import Question
from ._quantize import quantized, requantized
from ._row_groups import Group, products
from ._stores import (
    Estimate,
    biased,
    exact_linear_estimate,
    given,
    linear,
    linear_estimates,
    rounded,
    stored_or_kept,
)
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


class GroupedWeights(NamedTuple):
    """Weights of experts whose rows follow each other. w13, w2: matrices as of Weights. b13: [n, 2I] or [n, I], b2:
    [n, H], by row. a1, a2: as of Weights, one for all experts.
    """

    w13: Sequence[Group]
    w2: Sequence[Group]
    b13: Float64 | None = None
    b2: Float64 | None = None
    a1: float | None = None
    a2: float | None = None


class EstimatedOutput(NamedTuple):
    """z of some rows, [n, H]. v_h, step: [n, I] fp32, variance of h and what a flip of its store moves it by. shared:
    [n, H], the part of V_z that comes from h. The three are None where rows are not asked for.
    """

    z: Estimate
    v_h: AnyArray | None
    step: AnyArray | None
    shared: Float64 | None


def expert_estimates(
    xs: Sequence[Estimate],
    weights: GroupedWeights,
    spec: ExpertSpec,
    stores: Numerics,
    asked: Sequence[Question],
    *,
    exact_input: bool = True,
) -> list[EstimatedOutput]:
    """The estimates of z, one for each question. xs: estimates of [n, H]. exact_input: x has no error.

    V_g,u = V(x W13^T) + stores; V_h as in act_and_mul; V_z = V(h W2^T) + stores, where V(x W^T) has the inputs' errors
    and the fp32 accumulation. Errors of different columns of h are taken as independent; each is shared by all of z.
    """
    before, accumulate = stores.before_bias, stores.accumulate
    firsts = _first_products(xs, weights, stores, exact_input=exact_input)
    gate_ups = [stored_or_kept(biased(y, weights.b13, before), stores.gate_up) for y in firsts]
    hs, steps = [], []
    for gate_up, question in zip(gate_ups, asked, strict=True):
        h, step = activated_estimate(gate_up, spec, stores, averaged=True), np.zeros((1, 1))
        if stores.a2_quant is not None:
            h, step = requantized(h, stores.a2_quant, weights.a2)
        elif question.rows and question.flips:
            step = _flip_of(h.value, gate_up.value, spec, stores)
        hs.append(h)
        steps.append(step)
    zs, norms = linear_estimates(hs, weights.w2, accumulate=accumulate, norms=any(q.rows for q in asked))
    outputs = []
    for h, z, step, question in zip(hs, zs, steps, asked, strict=True):
        stored_z = stored_or_kept(biased(z, weights.b2, before), stores.per_expert)
        if not question.rows:
            outputs.append(EstimatedOutput(stored_z, None, None, None))
            continue
        # What accumulation adds to V_z, which columns do not share: its mean over a row of h and a row of w2.
        width = max(h.value.shape[1], 1)
        bridge, _ = ACCUMULATORS[accumulate].variance_factors(width)
        own = np.vecdot(h.value, h.value)[:, None] * norms * (bridge / width)
        shared = np.maximum(z.variance - own, 0.0)
        outputs.append(EstimatedOutput(stored_z, h.variance.astype(np.float32), step.astype(np.float32), shared))
    return outputs


def _first_products(
    xs: Sequence[Estimate], weights: GroupedWeights, stores: Numerics, *, exact_input: bool
) -> list[Estimate]:
    """The estimates of x W13^T, x quantised first where the contract says so."""
    if not exact_input and stores.a1_quant is None:
        return linear_estimates(xs, weights.w13, accumulate=stores.accumulate)[0]
    if stores.a1_quant is None:  # x is the same for every question
        return _of_exact(xs, weights.w13, stores)
    quantised = (requantized(x, stores.a1_quant, weights.a1)[0] for x in xs)
    # a quantised exact input still is one for every kernel, though not for the true value
    return [
        _of_exact([x], weights.w13, stores)[0]
        if exact_input and x.rare is not None
        else linear_estimates([x], weights.w13, accumulate=stores.accumulate)[0][0]
        for x in quantised
    ]


def _of_exact(xs: Sequence[Estimate], w13: Sequence[Group], stores: Numerics) -> list[Estimate]:
    """The estimates of x W13^T of one x without error."""
    low = stores.gate_up != "fp32"
    y = exact_linear_estimate(xs[0].value, w13, stored_low=low, accumulate=stores.accumulate)
    return [given(y, flips=x.rare is not None) for x in xs]


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


def expert_slope(x: Float64, dx: Float64, weights: GroupedWeights, spec: ExpertSpec) -> Float64:
    """Directional derivative of z at x along dx: W2 (a' m dg + a m' du). x, dx: [n, H] float64. Returns [n, H]."""
    gate_up, d_gate_up = products(weights.w13, [x, dx]).values
    f = factors(gate_up if weights.b13 is None else gate_up + weights.b13, spec)
    dg, du = split(d_gate_up, spec)
    dh = f.da * f.m * dg
    if du is not None:
        dh += f.a * f.dm * du
    slope: Float64 = products(weights.w2, [dh]).values[0]
    return slope
