"""An expert with any other function between its GEMMs, or any other GEMM, for mutants that no spec can express."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moecheck.formats import Float64, to_float64
from moecheck.oracle import reference_modules
from moecheck.spec import ExpertSpec

from .call import Call, slots_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Maths:
    """The right pieces of an expert's activation, to build a wrong one from."""

    spec: ExpertSpec

    @property
    def beta(self) -> float:
        return self.spec.swiglu_beta

    def act(self, gate: Float64) -> Float64:
        """The activation of the gate, clamped as the spec says."""
        limit, before = self.spec.swiglu_limit, self.spec.limit_position == "before"
        module = reference_modules()["act_and_mul"]
        a: Float64 = module.activation(np.minimum(gate, limit) if limit is not None and before else gate, self.spec)
        return np.minimum(a, limit) if limit is not None and not before else a

    def up(self, up: Float64) -> Float64:
        """The factor of the activation, clamped, bent and shifted as the spec says."""
        limit, beta = self.spec.swiglu_limit, self.spec.situ_up_beta
        up = np.clip(up, -limit, limit) if limit is not None else up
        return (up if beta is None else beta * np.tanh(up / beta)) + self.beta


Function = Callable[[Maths, Float64, Float64], Float64]
Multiply = Callable[[Float64, Float64], Float64]


def right_hidden(maths: Maths, gate: Float64, up: Float64) -> Float64:
    """act(gate) * (up + beta); `up` is 1 and beta no part of it where the expert is not gated."""
    return maths.act(gate) * (maths.up(up) if maths.spec.gated else 1.0)


def right_product(x: Float64, w: Float64) -> Float64:
    """X W^T. x: [n, K]. w: [N, K]. Returns [n, N]."""
    return x @ w.T


def as_it_is(values: Float64) -> Float64:
    """Values that are stored nowhere."""
    return values


def value_by(
    call: Call,
    function: Function = right_hidden,
    first: Multiply = right_product,
    second: Multiply = right_product,
    latent: Callable[[Float64], Float64] = as_it_is,
) -> Float64:
    """The call's output with h = function(maths, gate, up) in each expert, shared ones too; up is 1 where not gated.

    first, second: the products of the two GEMMs, without their biases; grouped_gemm has the first only. latent: how
    the experts' input is stored where the layer computes it.
    """
    spec = call.case.spec.experts
    if call.case.op == "act_and_mul":
        return _hidden(spec, to_float64(call.inputs["x"]), function)
    if call.case.op == "grouped_gemm":
        return _groups(call, first)
    inputs, x = call.inputs, to_float64(call.inputs["hidden_states"])
    slots = slots_of(call)
    ids = slots.ids
    if "expert_map" in inputs:
        ids = np.where(ids >= 0, inputs["expert_map"][np.maximum(ids, 0)], -1)
    layer = call.case.op == "moe_layer"
    module, routing = reference_modules()["moe_layer"], call.case.spec.routing
    rows = module._weight_rows(ids, call.case.num_experts, routing) if layer else ids
    narrow = layer and call.case.spec.latent_experts
    each = latent(right_product(x, to_float64(inputs["latent_down"]))) if narrow else x
    out = np.zeros(each.shape)
    for expert in np.unique(rows[rows >= 0]):
        tokens, chosen = np.nonzero(rows == expert)
        w = slots.weights[tokens, chosen][:, None]
        g = first(w * each[tokens] if spec.weight_on_input else each[tokens], to_float64(inputs["w13"][expert]))
        g = g + to_float64(inputs["w13_bias"][expert]) if "w13_bias" in inputs else g
        z = second(_hidden(spec, g, function), to_float64(inputs["w2"][expert]))
        z = z + to_float64(inputs["w2_bias"][expert]) if "w2_bias" in inputs else z
        out[tokens] += z if spec.weight_on_input else w * z  # a token meets an expert once
    if narrow:
        out = right_product(out, to_float64(inputs["latent_up"]))
    if not layer:
        return out
    out = out * module.output_factor(routing) + _shared(call, x, function, first, second)
    total: Float64 = out * call.case.spec.sum_factor
    return total


def _groups(call: Call, product: Multiply) -> Float64:
    """The output of a grouped GEMM, [rows, N]; rows beyond the last group are zero."""
    inputs = call.inputs
    x, ends = to_float64(inputs["x"]), [0, *inputs["expert_ends"].tolist()]
    out = np.zeros((len(x), inputs["w"].shape[1]))
    for expert, (start, end) in enumerate(pairwise(ends)):
        if end > start:
            out[start:end] = product(x[start:end], to_float64(inputs["w"][expert]))
            if "bias" in inputs:
                out[start:end] += to_float64(inputs["bias"][expert])
    return out


def _shared(call: Call, x: Float64, function: Function, first: Multiply, second: Multiply) -> Float64:
    """The shared experts' part of a layer, [T, H], and that of zero experts."""
    inputs, module = call.inputs, reference_modules()["moe_layer"]
    kind, part = call.case.spec.shared_experts, np.zeros(x.shape)
    if call.case.spec.routing.num_zero_experts:
        ids = slots_of(call).ids
        start = call.case.num_experts - call.case.spec.routing.num_zero_experts
        zero = (ids >= start) & (ids < call.case.num_experts)
        weights = np.where(zero, slots_of(call).weights, 0.0).sum(axis=1, keepdims=True)
        part = x * weights * module.output_factor(call.case.spec.routing)
    if kind == "none":
        return part
    hidden = _hidden(call.case.spec.shared, first(x, to_float64(inputs["shared_w13"])), function)
    shared = second(hidden, to_float64(inputs["shared_w2"]))
    if kind == "gated":
        shared = shared * module.sigmoid(x @ to_float64(inputs["shared_gate"]))[:, None]
    return part + shared


def _hidden(spec: ExpertSpec, gate_up: Float64, function: Function) -> Float64:
    gate, up = reference_modules()["act_and_mul"].split(gate_up, spec)
    return function(Maths(spec=spec), gate, np.ones(gate.shape) if up is None else up)
