"""A kernel in NumPy's float32: what a legal variant returns, on the case itself or on a mutant's call of it.

Nothing here is shared with the references but the definitions of layouts and of rarely used activation functions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from moecheck import draw
from moecheck.formats import FORMATS, AnyArray, to_float64
from moecheck.mutants.call import Call, slots_of
from moecheck.numerics import Numerics
from moecheck.oracle import reference_modules
from moecheck.quantizer import CODES, Quantizer
from moecheck.spec import ExpertSpec

from .variants import Variant, chunks_of

Float32 = npt.NDArray[np.float32]
OPS = ("unpermute", "grouped_gemm", "act_and_mul", "fused_experts", "moe_layer")
ROUTING_ULPS = 2  # by which a routing weight computed in fp32 may be off
KNOWN_INPUTS = frozenset(
    {
        "hidden_states", "router_logits", "correction_bias", "per_expert_scale", "token_ids", "tid2eid",
        "topk_weights", "topk_ids", "w13",
        "w2", "w13_bias", "w2_bias", "expert_map", "shared_w13", "shared_w2", "shared_gate", "permuted",
        "inv_permuted_idx", "x", "w", "expert_ends", "bias",
    }
)  # fmt: skip
_QUANTISED = {"fp8_e4m3fn": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}
_PLAIN_FIELDS = {"activation", "gated", "gate_up_layout", "swiglu_alpha", "swiglu_beta", "swiglu_limit",
                 "limit_position", "weight_on_input", "w13_bias", "w2_bias"}  # fmt: skip


def takes(call: Call) -> bool:
    """Whether this kernel implements the call."""
    return call.case.op in OPS and set(call.inputs) <= KNOWN_INPUTS


@np.errstate(all="ignore")
def output_of(call: Call, variant: Variant) -> Float32:
    """The output before it is stored in the case's dtype, [rows, columns]."""
    stores = variant.contract.resolve(call.case.dtype)
    out: Float32 = _KERNELS[call.case.op](call, variant, stores)
    return out


def _act_and_mul(call: Call, variant: Variant, stores: Numerics) -> Float32:
    return _hidden(_single(call.inputs["x"]), call.case.spec.experts, variant, stores)


def _grouped_gemm(call: Call, variant: Variant, stores: Numerics) -> Float32:
    x, w, bias = _single(call.inputs["x"]), call.inputs["w"], call.inputs.get("bias")
    ends = [0, *np.asarray(call.inputs["expert_ends"]).tolist()]
    out = np.full((len(x), w.shape[1]), np.nan, np.float32)
    for expert, (start, end) in enumerate(pairwise(ends)):
        if end > start:
            b = None if bias is None else bias[expert]
            out[start:end] = _linear(x[start:end], w[expert], b, variant, stores)
    return out


def _unpermute(call: Call, variant: Variant, stores: Numerics) -> Float32:
    slots = slots_of(call)
    rows, weights = _single(call.inputs["permuted"]), _stored(_single(slots.weights), stores.topk_weights)
    order = np.argsort(slots.ids, axis=1, kind="stable")  # rows are sorted by expert
    shape = (len(slots.ids), rows.shape[1])
    terms = np.zeros((slots.ids.shape[1], *shape), np.float32)
    for slot in range(slots.ids.shape[1]):
        known = slots.ids[:, slot] >= 0
        values = rows[slots.ids[known, slot]] * weights[known, slot][:, None]
        terms[slot, known] = _stored(values, stores.weighted)
    return _combined(terms, order, variant, stores)


def _fused_experts(call: Call, variant: Variant, stores: Numerics) -> Float32:
    slots = slots_of(call)
    ids = slots.ids.astype(np.int64)
    if "expert_map" in call.inputs:
        given = np.asarray(call.inputs["expert_map"]).astype(np.int64)
        ids = np.where(ids >= 0, given[np.maximum(ids, 0)], -1)
    return _experts(call, _single(slots.weights), ids, variant, stores)


def _moe_layer(call: Call, variant: Variant, stores: Numerics) -> Float32:
    """Routing weights are the mathematics' own, off by up to two units in the last place of fp32."""
    module, spec, case = reference_modules()["moe_layer"], call.case.spec, call.case
    slots = slots_of(call)
    noise = draw.integers(("routing", variant.seed, case.key), slots.weights.shape, below=2 * ROUTING_ULPS + 1)
    weights = _single(slots.weights)
    exact = np.isin(weights, (0.0, 1.0))  # a weight that is 1 by construction is not computed
    weights = np.where(exact, weights, weights + np.spacing(weights) * (noise - ROUTING_ULPS)).astype(np.float32)
    ids = module._weight_rows(slots.ids, case.num_experts, spec.routing)
    routed = _stored(_experts(call, weights, ids, variant, stores), stores.out)
    shared = None
    if spec.shared_experts != "none":
        names = ("shared_w13", "shared_w2")
        w13, w2 = (call.inputs[name] for name in names)
        shared = _expert(_single(call.inputs["hidden_states"]), (w13, w2, None, None), call, variant, stores)
    finished = module.finished(
        routed.astype(np.float64),
        x=to_float64(call.inputs["hidden_states"]),
        topk=(weights.astype(np.float64), slots.ids),
        num_experts=case.num_experts,
        shared=None if shared is None else shared.astype(np.float64),
        shared_gate=call.inputs.get("shared_gate"),
        spec=spec,
        stores=stores,
    )
    return _single(finished)


def _experts(call: Call, weights: Float32, ids: npt.NDArray[np.int64], variant: Variant, stores: Numerics) -> Float32:
    """The weighted sum of each token's local experts, [T, H]. ids: [T, slots], -1 for none."""
    x, on_input = _single(call.inputs["hidden_states"]), call.case.spec.experts.weight_on_input
    weights = _stored(weights, stores.topk_weights)
    terms = np.zeros((ids.shape[1], *x.shape), np.float32)
    for expert in np.unique(ids[ids >= 0]):
        tokens, slots = np.nonzero(ids == expert)
        w = weights[tokens, slots][:, None]
        rows = _stored(w * x[tokens], stores.weighted) if on_input else x[tokens]
        biases = (call.inputs[name][expert] if name in call.inputs else None for name in ("w13_bias", "w2_bias"))
        z = _expert(rows, (call.inputs["w13"][expert], call.inputs["w2"][expert], *biases), call, variant, stores)
        terms[slots, tokens] = z if on_input else _stored(z * w, stores.weighted)
    order = np.argsort(np.where(ids < 0, np.iinfo(np.int64).max, ids), axis=1, kind="stable")
    return _combined(terms, order, variant, stores)


def _expert(x: Float32, arrays: tuple[Any, ...], call: Call, variant: Variant, stores: Numerics) -> Float32:
    w13, w2, b13, b2 = arrays
    if stores.a1_quant is not None:
        x = requantised(x, stores.a1_quant)
    gate_up = _stored(_linear(x, w13, b13, variant, stores), stores.gate_up)
    h = _hidden(gate_up, call.case.spec.experts, variant, stores)
    if stores.a2_quant is not None:
        h = requantised(h, stores.a2_quant)
    return _stored(_linear(h, w2, b2, variant, stores), stores.per_expert)


def _linear(x: Float32, w: AnyArray, bias: AnyArray | None, variant: Variant, stores: Numerics) -> Float32:
    """X W^T + bias with fp32 partial sums. x: [n, K]. w: [N, K]."""
    w32 = _single(w)
    parts = chunks_of(variant, x.shape[1])
    partial = [np.zeros((len(x), len(w32)), np.float32) for _ in range(variant.splits)]
    for number, part in enumerate(parts):
        at = number % variant.splits
        product = x[:, part] @ w32[:, part].T
        partial[at] = product if number < variant.splits else partial[at] + product
    total = partial[0]
    for other in partial[1:]:
        total = total + other
    return total if bias is None else _stored(total, stores.before_bias) + _single(bias)


def _hidden(gate_up: Float32, spec: ExpertSpec, variant: Variant, stores: Numerics) -> Float32:
    """act(gate) * (up + beta), [n, I]."""
    module = reference_modules()["act_and_mul"]
    own = spec.activation in ("silu", "relu2", "gelu_tanh") and stores.sigmoid == "fp32"
    plain = all(getattr(spec, name) == getattr(ExpertSpec(), name) for name in _other_fields(spec))
    if not (own and plain):
        return _single(module.activated(gate_up.astype(np.float64), spec, stores))
    gate, up = module.split(gate_up, spec)
    limit = None if spec.swiglu_limit is None else np.float32(spec.swiglu_limit)
    if limit is not None and spec.limit_position == "before":
        gate = np.minimum(gate, limit)
    a = _stored(_activation(gate, spec, variant), stores.act)
    if limit is not None and spec.limit_position == "after":
        a = np.minimum(a, limit)
    if up is None:
        return _stored(a, stores.act_times_up)
    if limit is not None:
        up = np.clip(up, -limit, limit)
    if spec.swiglu_beta != 0.0:
        up = _stored(up + np.float32(spec.swiglu_beta), stores.up)
    return _stored(a * up, stores.act_times_up)


def _other_fields(spec: ExpertSpec) -> list[str]:
    return [name for name in spec.__dataclass_fields__ if name not in _PLAIN_FIELDS]


def _activation(gate: Float32, spec: ExpertSpec, variant: Variant) -> Float32:
    one = np.float32(1)
    if spec.activation == "relu2":
        return np.square(np.maximum(gate, np.float32(0)))
    if spec.activation == "silu":
        z = np.float32(spec.swiglu_alpha) * gate
    else:  # 0.5 (1 + tanh z) = sigmoid(2 z), without the cancellation
        z = np.float32(1.5957691216057308) * (gate + np.float32(0.044715) * gate * gate * gate)
    below = one + np.exp(-z)
    return np.asarray(gate * (one / below) if variant.reciprocal else gate / below)


def requantised(x: Float32, quantizer: Quantizer) -> Float32:
    """What the codes of x [n, K] stand for, computed in fp32."""
    width, largest = x.shape[1], np.float32(CODES[quantizer.format].max_value)
    group = quantizer.group or max(width, 1)
    padded = np.pad(x, ((0, 0), (0, -width % group))).reshape(len(x), -1, group)
    amax = np.maximum(np.abs(padded).max(axis=2, keepdims=True), np.float32(quantizer.eps))
    scale = amax / largest
    if quantizer.scale == "power_of_two":
        bits = scale.view(np.int32)
        scale = ((bits + np.int32(0x007FFFFF)) & np.int32(0x7F800000)).view(np.float32)
    scaled = padded / scale if quantizer.division == "divide" else padded * (np.float32(1) / scale)
    scaled = np.clip(scaled, -largest, largest)
    coded = _QUANTISED.get(quantizer.format)
    codes = np.rint(scaled) if coded is None else scaled.astype(coded).astype(np.float32)
    return np.asarray((codes * scale).reshape(len(x), -1)[:, :width])


def _combined(terms: Float32, by_expert: npt.NDArray[np.intp], variant: Variant, stores: Numerics) -> Float32:
    """The sum over slots [slots, T, H] -> [T, H]. by_expert: [T, slots], the slots of each token in expert order."""
    low = stores.combine != "fp32" and stores.combine_order != "tree"
    if stores.combine_order == "expert" or (not low and variant.order == "backward"):
        terms = np.take_along_axis(terms, by_expert.T[:, :, None], axis=0)
    if low:
        total = np.zeros(terms.shape[1:], np.float32)
        for term in terms:
            total = _stored(total + term, stores.combine)
        return total
    parts = list(terms)
    while variant.tree and len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)] + (parts[-1:] if len(parts) % 2 else [])
    total = parts[0]
    for term in parts[1:]:
        total = total + term
    return np.asarray(total)


def _single(values: AnyArray) -> Float32:
    return np.asarray(values).astype(np.float32)


def _stored(values: Float32, name: str) -> Float32:
    """Values as a store in format `name` leaves them."""
    return values if name == "fp32" else values.astype(FORMATS[name].storage).astype(np.float32)


_KERNELS = {
    "act_and_mul": _act_and_mul,
    "grouped_gemm": _grouped_gemm,
    "unpermute": _unpermute,
    "fused_experts": _fused_experts,
    "moe_layer": _moe_layer,
}
assert tuple(sorted(_KERNELS)) == tuple(sorted(OPS))
