"""Builds the inputs of a case: each op's arguments from Philox bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import draw
from .cases import Case
from .errors import CaseError
from .formats import AnyArray, store
from .gate_up import gate_up_rows
from .ops import OPS
from .probes import gates_and_ups
from .quantized_inputs import quantized_arrays, static_scales
from .routing_inputs import correction_bias, router_logits, topk_ids, topk_weights
from .weights import ExpertWeights, hidden_states, pre_activation
from .window_quantized import quantized_stacks
from .window_weights import WindowStack

Int32 = npt.NDArray[np.int32]
VOCABULARY = 97  # token ids of a hash table; tokens share some of them


def build(case: Case, *, lazy: bool = False) -> dict[str, Any]:
    """The arguments of `case.op` by name; optional ones that the case does not use are absent.

    lazy: leave the experts' weights and scales of a sampled case as WindowStacks.
    """
    inputs = _BUILDERS[case.op](case)
    if lazy:
        return inputs
    return {name: value.all() if isinstance(value, WindowStack) else value for name, value in inputs.items()}


def _topk_routing(case: Case) -> dict[str, Any]:
    logits = router_logits(case)
    return {"router_logits": _layout(case, store(logits, case.dtype)), **_router_extras(case)}


def _router_extras(case: Case) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if case.spec.routing.correction_bias != "none":
        extras["correction_bias"] = correction_bias(case)
    if case.spec.routing.per_expert_scale:
        scale = 0.5 + 1.5 * draw.uniforms((case.key, "per_expert_scale"), (case.num_experts,))
        extras["per_expert_scale"] = scale.astype(np.float32)
    if case.spec.routing.selection == "hash":
        table = draw.orders((case.key, "tid2eid"), VOCABULARY, case.num_experts)[:, : case.spec.routing.top_k]
        token_ids = draw.integers((case.key, "token_ids"), (case.num_tokens,), below=VOCABULARY)
        extras["token_ids"] = token_ids.astype(np.int32)
        extras["tid2eid"] = np.ascontiguousarray(table, dtype=np.int32)
    return extras


def _align_block_size(case: Case) -> dict[str, Any]:
    return {
        "topk_ids": topk_ids(case),
        "block_size": case.block_size,
        "num_experts": case.num_experts,
        **_expert_map(case),
    }


def _permute(case: Case) -> dict[str, Any]:
    inputs = {
        "hidden_states": _layout(case, hidden_states(case)),
        "topk_ids": topk_ids(case),
        "num_experts": case.num_experts,
        **_expert_map(case),
    }
    if case.hidden_scale:  # powers of two over 2^6, so that a scale read from the wrong place shows
        shape = (case.num_tokens, -(-case.hidden_size // 128))
        exponents = draw.integers((case.key, "hidden_scale"), shape, below=7) - 3
        inputs["hidden_scale"] = np.ldexp(np.float32(1), exponents.astype(np.int32)).astype(np.float32)
    return inputs


def _unpermute(case: Case) -> dict[str, Any]:
    ids = topk_ids(case)
    rows = ids.size
    inverse = draw.orders((case.key, "inv_permuted_idx"), 1, rows).reshape(ids.shape).astype(np.int32)
    scale = float(1 / np.sqrt(1.1 / max(case.spec.routing.top_k, 1)))
    return {
        "permuted": _layout(case, _rows(case, "permuted", rows, case.hidden_size, scale)),
        "topk_weights": topk_weights(case),
        "inv_permuted_idx": np.where(ids < 0, np.int32(-1), inverse),
    }


def _problem_sizes(case: Case) -> dict[str, Any]:
    return {
        "topk_ids": topk_ids(case),
        "num_experts": case.num_experts,
        "intermediate_size": case.intermediate_size,
        "hidden_size": case.hidden_size,
        **_expert_map(case),
    }


def _expert_counts(case: Case) -> dict[str, Any]:
    return {"topk_ids": topk_ids(case), "num_experts": case.num_experts, **_expert_map(case)}


def _shuffle_rows(case: Case) -> dict[str, Any]:
    rows = case.num_tokens * case.spec.routing.top_k if case.num_tokens else 0
    row_map = draw.integers((case.key, "row_map"), (rows,), below=max(case.num_tokens, 1))
    return {"x": _layout(case, hidden_states(case)), "row_map": row_map.astype(np.int32)}


def _batched_experts(case: Case) -> dict[str, Any]:
    """Each expert's tokens first among its rows, then NaN; one row more than the busiest expert needs."""
    ids, x = topk_ids(case), hidden_states(case)
    counts = np.bincount(ids[ids >= 0], minlength=case.num_experts)
    rows = np.full((case.num_experts, int(counts.max()) + 1, case.hidden_size), np.nan, dtype=x.dtype)
    for expert in range(case.num_experts):
        rows[expert, : counts[expert]] = x[np.nonzero(ids == expert)[0]]
    arrays = _expert_arrays(case, ExpertWeights(case))
    return {"hidden_states": _layout(case, rows), "expert_counts": counts.astype(np.int32), **arrays}


def _grouped_gemm(case: Case) -> dict[str, Any]:
    ids = topk_ids(case).reshape(-1)
    counts = np.bincount(ids[ids >= 0], minlength=case.num_experts)
    weights = ExpertWeights(case)
    rows = hidden_states(replace(case, num_tokens=int(counts.sum())))
    inputs = {
        "x": _layout(case, rows),
        "w": _stack([weights.w13(e) for e in range(case.num_experts)]),
        "expert_ends": np.cumsum(counts).astype(np.int32),
    }
    if case.spec.experts.w13_bias:
        inputs["bias"] = _rows(case, "bias", case.num_experts, inputs["w"].shape[1], 0.5)
    return inputs


def _act_and_mul(case: Case) -> dict[str, Any]:
    if case.stratum == "one_hot":
        return {"x": _layout(case, _probes(case))}
    width = case.intermediate_size * (2 if case.spec.experts.gated else 1)
    x = _rows(case, "x", case.num_tokens, width, pre_activation(case.spec.experts))
    if case.stratum == "outlier" and case.dtype != "fp16":  # exp(-g) overflows in fp32, g u exceeds what fp16 holds
        x[draw.integers((case.key, "outlier"), x.shape, below=32) == 0] *= x.dtype.type(128)
    return {"x": _layout(case, x)}


def _probes(case: Case) -> AnyArray:
    """[R, 2I] or [R, I]: all finite numbers of the format as gates, each beside a power of two."""
    shape = (case.num_tokens, case.intermediate_size)
    gates, ups = (part.reshape(shape) for part in gates_and_ups(shape[0] * shape[1], case.dtype))
    if not case.spec.experts.gated:
        return store(gates, case.dtype)
    columns = np.concatenate(gate_up_rows(case.spec.experts.gate_up_layout, shape[1]))
    both = np.empty((shape[0], 2 * shape[1]))
    both[:, columns] = np.concatenate([gates, ups], axis=1)
    return store(both, case.dtype)


def _fused_experts(case: Case) -> dict[str, Any]:
    weights, rows = ExpertWeights(case), hidden_states(case)
    return {
        "hidden_states": _layout(case, rows),
        "topk_weights": topk_weights(case),
        "topk_ids": topk_ids(case),
        **_expert_arrays(case, weights),
        **_expert_map(case),
        **static_scales(case, rows),
    }


def _expert_outputs(case: Case) -> dict[str, Any]:
    return {name: value for name, value in _fused_experts(case).items() if name != "topk_weights"}


def _expert_arrays(case: Case, weights: ExpertWeights) -> dict[str, Any]:
    spec, count = case.spec.experts, weights.count
    arrays: dict[str, Any]
    if case.sampled:
        arrays = dict(_stacks(case, weights))
    elif spec.quantization is not None:
        arrays = dict(quantized_arrays(case, weights))
    else:
        arrays = {
            "w13": _stack([weights.w13(e) for e in range(count)]),
            "w2": _stack([weights.w2(e) for e in range(count)]),
        }
    if spec.w13_bias:
        arrays["w13_bias"] = weights.w13_bias()
    if spec.w2_bias:
        arrays["w2_bias"] = weights.w2_bias()
    return arrays


def _stacks(case: Case, weights: ExpertWeights) -> dict[str, WindowStack]:
    """Weights and scales of a sampled case."""
    rows, width = case.intermediate_size * (2 if case.spec.experts.gated else 1), weights.width
    stacks: dict[str, WindowStack] = {}
    for name, shape, scale in zip(
        ("w13", "w2"),
        ((weights.count, rows, width), (weights.count, width, case.intermediate_size)),
        weights.standard_deviations,
        strict=True,
    ):
        if case.spec.experts.quantization is None:
            stacks[name] = WindowStack.plain((case.key, name), shape, scale=scale, dtype=case.dtype)
        else:
            stacks[name], stacks[f"{name}_scale"] = quantized_stacks(case, name, shape, scale=scale)
    return stacks


def _moe_layer(case: Case) -> dict[str, Any]:
    logits = router_logits(case)
    weights = ExpertWeights(case)
    inputs = {
        "hidden_states": _layout(case, hidden_states(case)),
        "router_logits": _layout(case, logits.astype(np.float32)),
        **_expert_arrays(case, weights),
        **_router_extras(case),
    }
    if case.spec.shared_experts != "none":
        inputs["shared_w13"], inputs["shared_w2"] = weights.shared_w13(), weights.shared_w2()
    if case.spec.shared_experts == "gated":
        inputs["shared_gate"] = _rows(case, "shared_gate", 1, case.hidden_size, case.hidden_size**-0.5)[0]
    if case.spec.latent_experts:
        inputs["latent_down"], inputs["latent_up"] = weights.latent_down(), weights.latent_up()
    return inputs


def _expert_parallel_moe(case: Case) -> dict[str, Any]:
    weights = ExpertWeights(case)
    inputs = {
        "hidden_states": _layout(case, hidden_states(case)),
        "router_logits": _layout(case, router_logits(case).astype(np.float32)),
        "num_ranks": case.num_ranks,
        **_expert_arrays(case, weights),
        **_router_extras(case),
    }
    if case.uneven_ranks:
        inputs["rank_tokens"] = _rank_tokens(case)
    if case.map_style != "linear":
        inputs["expert_placement"] = _expert_placement(case)
    return inputs


def _rank_tokens(case: Case) -> Int32:
    """[P]: shares of the tokens of which, where there are several, one is empty and the others differ."""
    order = draw.orders((case.key, "rank_tokens"), 1, case.num_ranks)[0]
    shares = np.maximum(order, case.num_ranks == 1)  # 0, 1, 2, ... in any order
    counts = case.num_tokens * shares // shares.sum()
    counts[np.argmax(order)] += case.num_tokens - counts.sum()
    return np.asarray(counts, np.int32)


def _expert_placement(case: Case) -> Int32:
    """[E]: the expert of each place, rank after rank."""
    if case.map_style == "round_robin":
        return np.arange(case.num_experts, dtype=np.int32).reshape(-1, case.num_ranks).T.reshape(-1).copy()
    return np.asarray(draw.orders((case.key, "expert_placement"), 1, case.num_experts)[0], np.int32)


def _expert_map(case: Case) -> dict[str, Int32]:
    """Global to local ids of the rank that owns `num_local_experts` of the experts, -1 for the others.

    The last expert is among them under every style: an index of -1 that wraps around would then show.
    """
    local, E = case.num_local_experts, case.num_experts
    if local is None:
        return {}
    mapped = np.full(E, -1, np.int32)
    if case.map_style == "linear":
        owned = np.arange(E - local, E)
    elif case.map_style == "round_robin":
        owned = np.arange(E - 1, -1, -max(1, E // local))[:local][::-1]
    else:
        order = draw.orders((case.key, "expert_map"), 1, E)[0]
        owned = np.concatenate([order[order != E - 1][: local - 1], [E - 1]])
    mapped[owned] = np.arange(local, dtype=np.int32)
    return {"expert_map": mapped}


def _rows(case: Case, name: str, rows: int, width: int, scale: float) -> AnyArray:
    return draw.normals((case.key, name), (rows, width), scale=scale, dtype=case.dtype)


def _stack(arrays: list[AnyArray]) -> AnyArray:
    if not arrays:
        raise CaseError("A case needs at least one expert.")
    return np.stack(arrays)


def _layout(case: Case, array: AnyArray) -> AnyArray:
    """The array itself, or a view of equal values whose rows lie further apart, with NaN in between."""
    if case.layout == "contiguous":
        return array
    *rows, width = array.shape
    wide = np.full((*rows, width + 32), np.nan, dtype=array.dtype)
    wide[..., :width] = array
    return wide[..., :width]


_BUILDERS = {
    "topk_routing": _topk_routing,
    "align_block_size": _align_block_size,
    "permute": _permute,
    "unpermute": _unpermute,
    "problem_sizes": _problem_sizes,
    "shuffle_rows": _shuffle_rows,
    "grouped_gemm": _grouped_gemm,
    "act_and_mul": _act_and_mul,
    "fused_experts": _fused_experts,
    "expert_outputs": _expert_outputs,
    "batched_experts": _batched_experts,
    "expert_counts": _expert_counts,
    "moe_layer": _moe_layer,
    "expert_parallel_moe": _expert_parallel_moe,
}
assert _BUILDERS.keys() == OPS.keys(), "each op needs a builder"
