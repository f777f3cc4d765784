"""Wrong kernels, each the reference with one change: what relations must find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.relations.relation import Inputs, Outputs
from tests.relations.trial import Kernel, honest

SIZES = {"num_tokens": 24, "num_experts": 8, "hidden_size": 64, "intermediate_size": 64}


def changed(change: Callable[[Case, Inputs, AnyArray], AnyArray]) -> Kernel:
    """The reference with its first output changed."""

    def kernel(case: Case, inputs: Inputs) -> Outputs:
        first, *others = honest(case, inputs)
        return (change(case, inputs, first.copy()).astype(first.dtype), *others)

    return kernel


def fed(change: Callable[[Case, Inputs], Inputs]) -> Kernel:
    """The reference on changed inputs."""
    return lambda case, inputs: honest(case, {**inputs, **change(case, inputs)})


def noisy() -> Kernel:
    calls = count()
    return changed(lambda case, inputs, out: out * (1.0 + 2.0**-6 * next(calls)))


def drops_past_a_block(case: Case, inputs: Inputs) -> Inputs:
    """Rows past the 128th of an expert get no weight."""
    ids, weights = inputs["topk_ids"], inputs["topk_weights"].copy()
    for expert in range(case.num_experts):
        token, slot = np.nonzero(ids == expert)
        weights[token[128:], slot[128:]] = 0
    return {"topk_weights": weights}


def without(ids: AnyArray, expert: int) -> AnyArray:
    return np.where(ids == expert, -1, ids).astype(ids.dtype)


def wraps_foreign_ids(case: Case, inputs: Inputs) -> Inputs:
    if "expert_map" not in inputs:
        return {}
    return {"expert_map": np.where(inputs["expert_map"] < 0, len(inputs["w13"]) - 1, inputs["expert_map"])}


def renormalises(case: Case, inputs: Inputs) -> Inputs:
    weights = inputs["topk_weights"]
    return {"topk_weights": weights / np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-9))}


def exchanges_gate_and_up(case: Case, inputs: Inputs) -> Inputs:
    name = "x" if case.op == "act_and_mul" else "w13"
    return {name: np.concatenate(np.split(inputs[name], 2, axis=1)[::-1], axis=1)}


def leaks_nan(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    name = next(n for n in ("hidden_states", "x", "router_logits") if n in inputs)
    return np.asarray(out + 0 * inputs[name].astype(np.float32).sum())


def weighs_with_the_bias(case: Case, inputs: Inputs, weights: AnyArray) -> AnyArray:
    _, ids = honest(case, inputs)
    scores = 1 / (1 + np.exp(-inputs["router_logits"])) + inputs["correction_bias"]
    chosen = np.take_along_axis(scores, ids.astype(np.int64), axis=1)
    return np.asarray(chosen / chosen.sum(axis=1, keepdims=True))


def overflowing_softmax(case: Case, inputs: Inputs) -> Inputs:
    return {"router_logits": np.minimum(inputs["router_logits"], np.float32(9.0))}


def ignores_selection(case: Case, inputs: Inputs) -> Outputs:
    """softmax_over_selected is taken for a plain softmax."""
    routing = replace(case.spec.routing, softmax_over_selected=False)
    return honest(replace(case, spec=replace(case.spec, routing=routing)), inputs)


def weighs_the_shared_slot_by_the_factor(case: Case, inputs: Inputs) -> Outputs:
    """The fused shared slot gets the routed factor too."""
    if not case.spec.routing.num_fused_shared_experts:
        return honest(case, inputs)
    w2 = inputs["w2"].copy()
    w2[-1] *= w2.dtype.type(case.spec.routing.routed_scaling_factor)
    return honest(case, {**inputs, "w2": w2})


def takes_halves_of_wide_ids(case: Case, inputs: Inputs) -> Inputs:
    ids = inputs["topk_ids"]
    halves = np.ascontiguousarray(ids).view(np.int32).reshape(-1)[: ids.size].reshape(ids.shape)
    return {"topk_ids": np.clip(halves, -1, case.num_experts - 1)}


def takes_unsigned_ids_for_wide_ones(case: Case, inputs: Inputs) -> Inputs:
    ids = inputs["topk_ids"]
    if ids.dtype != np.uint32:
        return {}
    wide = np.ascontiguousarray(ids).view(np.int64).reshape(-1) % case.num_experts
    return {"topk_ids": np.resize(wide, ids.shape)}


def drops_experts_past_the_eighth(case: Case, inputs: Inputs) -> Inputs:
    return {"topk_ids": np.where(inputs["topk_ids"] >= 8, -1, inputs["topk_ids"]).astype(np.int32)}


def keeps_what_it_saw_first(*names: str) -> Kernel:
    """As a captured graph that copied some of its inputs: it looks at memory once."""
    seen: dict[int, tuple[AnyArray, AnyArray]] = {}  # address -> the array, kept alive, and what it held

    def kernel(case: Case, inputs: Inputs) -> Outputs:
        for name in names:
            array = inputs[name]
            seen.setdefault(array.ctypes.data, (array, array.copy()))
        return honest(case, {**inputs, **{name: seen[inputs[name].ctypes.data][1] for name in names}})

    return kernel


def adds_where_there_is_nothing(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    """The padded columns of the routed output get the mean of the others, as where a slice is taken too late."""
    padded = ~inputs["w2"].astype(np.float32).any(axis=(0, 2))
    return np.asarray(np.where(padded, out.mean(axis=1, keepdims=True), out))


def width_counts(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    return np.asarray(out * out.dtype.type(1 + inputs["w2"].shape[2] / 1000))


def adds_the_shared_expert_whole(case: Case, inputs: Inputs) -> Outputs:
    """Each of two ranks adds the shared expert's output twice, as where ranks hold all of it and sum."""
    (out,) = honest(case, inputs)
    rest, spec = case.intermediate_size, replace(case.spec, shared_experts="none")
    plain = {name: value for name, value in inputs.items() if not name.startswith("shared_")}
    (routed,) = honest(replace(case, spec=spec, shared_intermediate_size=0), plain)
    return (np.asarray(out + (out - routed) * out.dtype.type(rest < SIZES["intermediate_size"])),)


def adds_the_second_bias_always() -> Kernel:
    """Every rank adds the bias that it was given first, as where only rank 0's is loaded and all of them use it."""
    first: list[AnyArray] = []

    def kernel(case: Case, inputs: Inputs) -> Outputs:
        first.append(inputs["w2_bias"])
        return honest(case, {**inputs, "w2_bias": first[0]})

    return kernel


def one_scale_for_all_rows(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    """Rounded to 2^-9 of the largest number that goes in, garbage included; a maximum that passes over NaN."""
    step = np.nanmax(np.abs(inputs["hidden_states"].astype(np.float32))) * 2.0**-9
    return np.asarray(np.rint(out / step) * step)


def position_counts(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    out[0] *= out.dtype.type(1.02)
    return out


def batch_counts(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    return np.asarray(out * out.dtype.type(1 + len(out) / 1000))


def last_row_of_a_large_batch(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    if len(out) > SIZES["num_tokens"]:
        out[SIZES["num_tokens"] - 1] = 0
    return out


def looks_at_the_last_expert(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    return np.asarray(out + inputs["w2"][-1].astype(np.float32).std())


def contiguous_only(case: Case, inputs: Inputs) -> Inputs:
    """Reads rows as if they followed each other in memory."""
    name = next(n for n in ("hidden_states", "x", "router_logits") if n in inputs)
    array = inputs[name]
    wide = array if array.base is None or array.flags.c_contiguous else array.base
    return {
        name: np.nan_to_num(wide.reshape(-1)[: array.size].reshape(array.shape).astype(np.float32)).astype(array.dtype)
    }


def contiguous_matrix(array: AnyArray) -> AnyArray:
    """What a kernel reads that takes an array's memory for rows one behind the other."""
    wide = array if array.base is None or array.flags.c_contiguous else array.base
    return wide.reshape(-1)[: array.size].reshape(array.shape)


def loses_an_empty_first_rank(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    """Tokens are numbered from the first rank that has some, which then writes over another's."""
    shares = inputs.get("rank_tokens")
    return np.roll(out, 1, axis=0) if shares is not None and shares[0] == 0 else out


def weights_in_places(case: Case, inputs: Inputs) -> Inputs:
    """The weights lie in places, and the ids are still those of experts."""
    placement = inputs.get("expert_placement")
    names = ("w13", "w2", "w13_bias", "w2_bias")
    return {} if placement is None else {name: inputs[name][placement] for name in names if name in inputs}


def adds_every_copy(case: Case, inputs: Inputs, out: AnyArray) -> AnyArray:
    """Every copy of an expert computes its tokens, and all of them are added up."""
    placement = inputs.get("expert_placement")
    return out if placement is None else np.asarray(out * (len(placement) / case.num_experts))
