"""A layer in float32 NumPy with low-precision stores, and switches that break it; it shares no code with moecheck.

Written from the formulas, as a kernel is: routing in float32, one loop over experts, GEMMs in float32 with their terms
summed in blocks of 64, stores in the case's dtype after each GEMM and after the activation.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from moecheck.cases import Case

Float32 = npt.NDArray[np.float32]
STORAGE = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
BLOCK = 64


def topk(case: Case, inputs: dict[str, Any], bug: str = "") -> tuple[Float32, npt.NDArray[np.int32]]:
    """Weights [T, k] and ids [T, k] of softmax or sigmoid routing with bias, groups, renormalisation and a factor."""
    spec = case.spec.routing
    logits = inputs["router_logits"].astype(np.float32)
    if spec.scoring == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
    else:
        scores = np.float32(1) / (np.float32(1) + np.exp(-logits))
    choice = scores
    if spec.correction_bias == "select" and bug != "bias_ignored":
        choice = scores + inputs["correction_bias"]
    masked = choice
    if spec.num_expert_groups > 1 and bug != "groups_ignored":
        groups = choice.reshape(len(choice), spec.num_expert_groups, -1)
        best = np.sort(groups, axis=2)[:, :, -(1 if spec.group_score == "max" else 2) :].sum(axis=2)
        kept = np.argsort(-best, axis=1, kind="stable")[:, : spec.topk_groups]
        mask = np.zeros(best.shape, bool)
        np.put_along_axis(mask, kept, True, axis=1)
        masked = np.where(mask[:, :, None], groups, np.float32(-np.inf)).reshape(choice.shape)
    ids = np.argsort(-masked, axis=1, kind="stable")[:, : spec.top_k].astype(np.int32)
    weights = np.take_along_axis(choice if bug == "biased_scores_as_weights" else scores, ids, axis=1)
    if spec.renormalize != (bug == "renorm_flip"):
        weights = weights / weights.sum(axis=1, keepdims=True)
    if spec.scaling_placement == "topk_weights":
        weights = weights * np.float32(_factor(case, bug))
    return weights, ids


def layer(case: Case, inputs: dict[str, Any], bug: str = "", noise: int = 0) -> tuple[npt.NDArray[Any], ...]:
    """The output [T, H] of a layer (moe_layer) or of its experts (fused_experts) with one bug.

    noise: seed of the order in which terms are summed.
    """
    rng = np.random.default_rng(noise)
    x = inputs["hidden_states"].astype(np.float32)
    whole = case.op == "moe_layer"
    weights, ids = topk(case, inputs, bug) if whole else (inputs["topk_weights"], inputs["topk_ids"])
    if whole and bug == "renorm_all":  # a shared slot of weight 1/r joins the routed ones, r comes afterwards
        weights = weights / (
            weights.sum(axis=1, keepdims=True) + np.float32(1 / case.spec.routing.routed_scaling_factor)
        )
    out = np.zeros(x.shape, np.float32)
    for expert in range(case.num_experts):
        tokens, slots = np.nonzero(ids == expert)
        if not len(tokens) or (bug == "expert_dropped" and expert == ids[0, 0]):
            continue
        z = _expert(case, x[tokens], inputs["w13"][expert], inputs["w2"][expert], bug, rng)
        out[tokens] += weights[tokens, slots][:, None].astype(np.float32) * z
    if whole and case.spec.routing.scaling_placement == "routed_output":
        out = _store(case, out) * np.float32(_factor(case, bug))
    if whole and case.spec.shared_experts != "none":
        shared = _expert(case, x, inputs["shared_w13"], inputs["shared_w2"], bug, rng)
        out = out + shared * _shared_weight(case, bug, weights)
    if bug == "factor":
        out = out * np.float32(1.05)
    out = out.astype(STORAGE[case.dtype])
    row = noise % len(out)
    if bug == "all_zeros":
        out[:] = 0
    if bug == "1_token_zero":
        out[row] = 0
    if bug == "nan_rows":
        out[row] = np.nan
    return (out,)


def _factor(case: Case, bug: str) -> float:
    r = case.spec.routing.routed_scaling_factor
    return {"drop_r": 1.0, "r_twice": r * r}.get(bug, r)


def _shared_weight(case: Case, bug: str, weights: Float32) -> Float32 | np.float32:
    r = case.spec.routing.routed_scaling_factor
    if bug == "w_sh=1/r":
        return np.float32(1 / r)
    if bug == "renorm_all":  # (1/r) / (1 + 1/r), times r: the routed weights given here add up to 1 / (1 + 1/r)
        return (np.float32(1) - weights.sum(axis=1, keepdims=True)) * np.float32(r)
    return np.float32(1)


def _expert(
    case: Case, x: Float32, w13: npt.NDArray[Any], w2: npt.NDArray[Any], bug: str, rng: np.random.Generator
) -> Float32:
    gate_up = _store(case, _gemm(x, w13.astype(np.float32), rng))
    gate, up = np.split(gate_up, 2, axis=1)
    if bug == "swap_gate_up":
        gate, up = up, gate
    if bug == "silu->gelu":
        inner = np.float32(0.7978845608) * (gate + np.float32(0.044715) * gate**3)
        act = np.float32(0.5) * gate * (np.float32(1) + np.tanh(inner))
    else:
        act = gate / (np.float32(1) + np.exp(-gate))
    return _store(case, _gemm(_store(case, act * up), w2.astype(np.float32), rng))


def _gemm(x: Float32, w: Float32, rng: np.random.Generator) -> Float32:
    """The product x w^T, blocks of terms added in a random order."""
    starts = rng.permutation(np.arange(0, x.shape[1], BLOCK))
    total = np.zeros((len(x), len(w)), np.float32)
    for start in starts:
        total += x[:, start : start + BLOCK] @ w[:, start : start + BLOCK].T
    return total


def _store(case: Case, values: Float32) -> Float32:
    return values.astype(STORAGE[case.dtype]).astype(np.float32)
