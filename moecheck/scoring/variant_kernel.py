"""A kernel in NumPy's float32: what a legal variant returns, on the case itself or on a mutant's call of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from moecheck import draw
from moecheck.formats import AnyArray, to_float64
from moecheck.mutants.call import Call, slots_of
from moecheck.numerics import Numerics
from moecheck.oracle import reference_modules
from moecheck.spec import ExpertSpec

from .variant_maths import Float32, combined, hidden, linear, requantised, single, stored
from .variants import Variant

ROUTING_ULPS = 2  # by which a routing weight computed in fp32 may be off
GARBAGE = np.float32(-7e4)  # what a row of an output that is nobody's holds
KNOWN_INPUTS = frozenset(
    {
        "hidden_states", "router_logits", "correction_bias", "per_expert_scale", "token_ids", "tid2eid",
        "topk_weights", "topk_ids", "w13", "w2", "w13_bias", "w2_bias", "expert_map", "a1_scale", "a2_scale",
        "shared_w13", "shared_w2", "shared_gate", "latent_down", "latent_up", "expert_counts", "permuted",
        "inv_permuted_idx", "x", "w", "expert_ends", "bias",
    }
)  # fmt: skip
Ids = npt.NDArray[np.int64]


def takes(call: Call) -> bool:
    """Whether this kernel implements the call."""
    return call.case.op in _KERNELS and set(call.inputs) <= KNOWN_INPUTS


@np.errstate(all="ignore")
def output_of(call: Call, variant: Variant) -> Float32:
    """The output before it is stored in the case's dtype, [rows, columns]."""
    stores = variant.contract.resolve(call.case.dtype)
    out: Float32 = _KERNELS[call.case.op](call, variant, stores)
    return out


def _act_and_mul(call: Call, variant: Variant, stores: Numerics) -> Float32:
    return hidden(single(call.inputs["x"]), call.case.spec.experts, variant, stores)


def _grouped_gemm(call: Call, variant: Variant, stores: Numerics) -> Float32:
    x, w, bias = single(call.inputs["x"]), call.inputs["w"], call.inputs.get("bias")
    ends = [0, *np.asarray(call.inputs["expert_ends"]).tolist()]
    out = np.full((len(x), w.shape[1]), np.nan, np.float32)
    for expert, (start, end) in enumerate(pairwise(ends)):
        if end > start:
            b = None if bias is None else bias[expert]
            out[start:end] = linear(x[start:end], w[expert], b, variant, stores)
    return out


def _unpermute(call: Call, variant: Variant, stores: Numerics) -> Float32:
    slots = slots_of(call)
    rows, weights = single(call.inputs["permuted"]), stored(single(slots.weights), stores.topk_weights)
    order = np.argsort(slots.ids, axis=1, kind="stable")  # rows are sorted by expert
    shape = (len(slots.ids), rows.shape[1])
    terms = np.zeros((slots.ids.shape[1], *shape), np.float32)
    for slot in range(slots.ids.shape[1]):
        known = slots.ids[:, slot] >= 0
        values = rows[slots.ids[known, slot]] * weights[known, slot][:, None]
        terms[slot, known] = stored(values, stores.weighted)
    return combined(terms, order, variant, stores)


def _fused_experts(call: Call, variant: Variant, stores: Numerics) -> Float32:
    slots = slots_of(call)
    x = single(call.inputs["hidden_states"])
    return _experts(call, x, single(slots.weights), _local(call, slots.ids), variant, stores)


def _expert_outputs(call: Call, variant: Variant, stores: Numerics) -> Float32:
    """[T k, H]; slots without an expert hold garbage."""
    ids = _local(call, call.inputs["topk_ids"])
    x = np.repeat(single(call.inputs["hidden_states"]), ids.shape[1], axis=0)
    return _rows_of_experts(call, x, ids.reshape(-1), variant, stores)


def _batched_experts(call: Call, variant: Variant, stores: Numerics) -> Float32:
    """[E C, H]; rows beyond an expert's count hold garbage, and are not read."""
    x = single(call.inputs["hidden_states"])
    held = np.arange(x.shape[1]) < np.asarray(call.inputs["expert_counts"])[:, None]
    ids = np.where(held, np.arange(len(x))[:, None], -1).reshape(-1)
    return _rows_of_experts(call, x.reshape(-1, x.shape[2]), ids, variant, stores)


def _rows_of_experts(call: Call, x: Float32, ids: Ids, variant: Variant, stores: Numerics) -> Float32:
    """Each row's own expert, neither weighted nor added up. x: [n, H]. ids: [n]."""
    out = np.full(x.shape, GARBAGE, np.float32)
    for expert in np.unique(ids[ids >= 0]):
        at = ids == expert
        out[at] = _expert(x[at], _arrays(call, expert), call.case.spec.experts, variant, stores, _static(call))
    return out


def _moe_layer(call: Call, variant: Variant, stores: Numerics) -> Float32:
    """Routing weights are the mathematics' own, off by up to two units in the last place of fp32."""
    module, spec, case = reference_modules()["moe_layer"], call.case.spec, call.case
    slots = slots_of(call)
    noise = draw.integers(("routing", variant.seed, case.key), slots.weights.shape, below=2 * ROUTING_ULPS + 1)
    weights = single(slots.weights)
    exact = np.isin(weights, (0.0, 1.0))  # a weight that is 1 by construction is not computed
    weights = np.where(exact, weights, weights + np.spacing(weights) * (noise - ROUTING_ULPS)).astype(np.float32)
    ids = module._weight_rows(slots.ids, case.num_experts, spec.routing).astype(np.int64)
    x = rows = single(call.inputs["hidden_states"])
    if spec.latent_experts:
        rows = stored(linear(x, call.inputs["latent_down"], None, variant, stores), stores.gate_up)
    routed = stored(_experts(call, rows, weights, ids, variant, stores), stores.out)
    if spec.latent_experts:
        routed = stored(linear(routed, call.inputs["latent_up"], None, variant, stores), stores.out)
    shared = None
    if spec.shared_experts != "none":
        arrays = (call.inputs["shared_w13"], call.inputs["shared_w2"], None, None)
        shared = _expert(x, arrays, spec.shared, variant, stores)
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
    return single(finished)


def _local(call: Call, ids: AnyArray) -> Ids:
    """Ids through the expert map, if there is one."""
    ids = ids.astype(np.int64)
    if "expert_map" not in call.inputs:
        return ids
    given = np.asarray(call.inputs["expert_map"]).astype(np.int64)
    return np.where(ids >= 0, given[np.maximum(ids, 0)], -1)


def _experts(call: Call, x: Float32, weights: Float32, ids: Ids, variant: Variant, stores: Numerics) -> Float32:
    """The weighted sum of each token's local experts, [T, X]. x: [T, X]. ids: [T, slots], -1 for none."""
    spec = call.case.spec.experts
    weights = stored(weights, stores.topk_weights)
    terms = np.zeros((ids.shape[1], *x.shape), np.float32)
    for expert in np.unique(ids[ids >= 0]):
        tokens, slots = np.nonzero(ids == expert)
        w = weights[tokens, slots][:, None]
        rows = stored(w * x[tokens], stores.weighted) if spec.weight_on_input else x[tokens]
        z = _expert(rows, _arrays(call, expert), spec, variant, stores, _static(call))
        terms[slots, tokens] = z if spec.weight_on_input else stored(z * w, stores.weighted)
    order = np.argsort(np.where(ids < 0, np.iinfo(np.int64).max, ids), axis=1, kind="stable")
    return combined(terms, order, variant, stores)


def _arrays(call: Call, expert: int) -> tuple[Any, ...]:
    """One expert's w13, w2 and their biases."""
    biases = (call.inputs[name][expert] if name in call.inputs else None for name in ("w13_bias", "w2_bias"))
    return call.inputs["w13"][expert], call.inputs["w2"][expert], *biases


def _static(call: Call) -> tuple[AnyArray | None, AnyArray | None]:
    """The scales of static quantisers."""
    return call.inputs.get("a1_scale"), call.inputs.get("a2_scale")


def _expert(
    x: Float32,
    arrays: tuple[Any, ...],
    spec: ExpertSpec,
    variant: Variant,
    stores: Numerics,
    static: tuple[AnyArray | None, AnyArray | None] = (None, None),
) -> Float32:
    """One expert on its rows. arrays: as of _arrays."""
    w13, w2, b13, b2 = arrays
    if stores.a1_quant is not None:
        x = requantised(x, stores.a1_quant, static[0])
    gate_up = stored(linear(x, w13, b13, variant, stores), stores.gate_up)
    h = hidden(gate_up, spec, variant, stores)
    if stores.a2_quant is not None:
        h = requantised(h, stores.a2_quant, static[1])
    return stored(linear(h, w2, b2, variant, stores), stores.per_expert)


_KERNELS = {
    "act_and_mul": _act_and_mul,
    "grouped_gemm": _grouped_gemm,
    "unpermute": _unpermute,
    "fused_experts": _fused_experts,
    "expert_outputs": _expert_outputs,
    "batched_experts": _batched_experts,
    "moe_layer": _moe_layer,
}
