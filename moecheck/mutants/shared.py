"""Mutants of shared experts: how they are weighed, gated and normalised, unfused or riding along as slots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecheck.cases import Case
from moecheck.formats import Float64, to_float64

from .call import Call, Mutation, Term, slots_of, value, with_inputs, with_routing, with_slots
from .registry import mutant
from .routing import effective_factor, routing

SHARED = ("topk_routing", "moe_layer")


def fused(case: Case) -> bool:
    """Shared experts that ride along as slots."""
    return routing(case).num_fused_shared_experts > 0


def unfused(case: Case) -> bool:
    return case.op == "moe_layer" and case.spec.shared_experts != "none"


def has_shared(case: Case) -> bool:
    return fused(case) or unfused(case)


def has_shared_and_factor(case: Case) -> bool:
    return has_shared(case) and effective_factor(case) != 1.0


def routed_only(call: Call) -> Call:
    """The layer without its shared experts."""
    spec = replace(call.case.spec, shared_experts="none", shared_spec=None)
    call = replace(call, case=replace(call.case, spec=spec, shared_intermediate_size=0))
    if not fused(call.case):
        return call
    ids = slots_of(call).ids
    return with_slots(call, ids=np.where(ids >= call.case.num_experts, -1, ids))


def shared_only(call: Call) -> Call:
    """The layer's shared experts alone."""
    ids = slots_of(call).ids
    return with_slots(call, ids=np.where(ids < call.case.num_experts, -1, ids))


def weighed(call: Call, factor: Float64 | float) -> Mutation:
    """The call with its shared experts' outputs multiplied by a factor, a number or [T, 1]."""
    if call.case.op == "moe_layer":
        return Term(call=routed_only(call)), Term(call=shared_only(call), factor=factor)
    slots = slots_of(call)
    return with_slots(call, weights=np.where(slots.ids >= call.case.num_experts, factor, 1.0) * slots.weights)


@mutant(
    "w_sh=1/r",
    "shared expert weighted 1/r instead of 1",
    *SHARED,
    when=has_shared_and_factor,
    sources=("vllm-project/vllm#28540", "sgl-project/sglang#28237"),
)
def shared_by_inverse_factor(call: Call) -> Mutation:
    return weighed(call, 1.0 / effective_factor(call.case))


@mutant(
    "w_sh=r",
    "shared expert weighted r instead of 1: the routed scaling factor multiplies it too",
    *SHARED,
    when=has_shared_and_factor,
    sources=("sgl-project/sglang#8333",),
)
def shared_by_factor(call: Call) -> Mutation:
    return weighed(call, effective_factor(call.case))


@mutant(
    "w_sh=Sum/r",
    "the shared slot weighs 1/r and the routed scaling factor is lost: all is 1/r of the right output",
    "moe_layer",
    when=has_shared_and_factor,
    sources=("vllm-project/vllm#28540",),
)
def shared_slot_without_factor(call: Call) -> Mutation:
    return (Term(call=call, factor=1.0 / effective_factor(call.case)),)


@mutant(
    "renorm_all",
    "the weights are renormalised over routed and shared experts together",
    "topk_routing",
    when=fused,
    sources=("vllm-project/vllm#28540",),
)
def slots_renormalised_over_all(call: Call) -> Call:
    slots, factor = slots_of(call), effective_factor(call.case)
    scale = factor if routing(call.case).scaling_placement == "topk_weights" else 1.0
    return with_slots(call, weights=scale * slots.weights / slots.weights.sum(axis=1, keepdims=True))


@mutant(
    "renorm_all",
    "the weights are renormalised over routed and shared experts together",
    "moe_layer",
    variant="net weights",
    when=has_shared,
    sources=("vllm-project/vllm#28540",),
)
def renormalised_over_all(call: Call) -> Mutation:
    """The routed slots and one shared slot of weight 1/r divided by their sum, and r on what they add up to."""
    factor = effective_factor(call.case)
    total = _routed_sum(call) + 1.0 / factor
    return (Term(call=call, factor=1.0 / total),)


@mutant(
    "renorm_all",
    "the weights are renormalised over routed and shared experts together, the shared score being 1",
    "moe_layer",
    variant="shared score 1",
    when=lambda case: has_shared(case) and routing(case).renormalize,
    sources=("vllm-project/vllm#28540",),
)
def renormalised_over_scores(call: Call) -> Mutation:
    """Scores s of the chosen experts and a shared score 1: weights s / (sum s + 1) and 1 / (sum s + 1), r on all."""
    raw = with_routing(call, renormalize=False, routed_scaling_factor=1.0, per_expert_scale=False)
    total = _routed_sum(raw)
    factor = effective_factor(call.case)
    return (
        Term(call=routed_only(call), factor=total / (total + 1.0)),
        Term(call=shared_only(call), factor=factor / (total + 1.0)),
    )


@mutant(
    "shared_missing",
    "the shared expert is missing",
    *SHARED,
    when=has_shared,
    sources=("sgl-project/sglang#38963",),
)
def shared_missing(call: Call) -> Mutation:
    return weighed(call, 0.0)


@mutant(
    "shared_twice", "the shared expert is added twice", *SHARED, when=has_shared, sources=("vllm-project/vllm#28277",)
)
def shared_twice(call: Call) -> Mutation:
    return weighed(call, 2.0)


@mutant(
    "shared_replaced_by_routed",
    "one more routed expert stands in the place of the shared one",
    "moe_layer",
    when=lambda case: has_shared(case) and _one_more_fits(case),
    sources=("sgl-project/sglang#38963",),
)
def shared_replaced_by_routed(call: Call) -> Call:
    one_more = with_routing(call, top_k=routing(call.case).top_k + 1, num_fused_shared_experts=0)
    return routed_only(one_more)


@mutant("gate_missing", "the shared expert's sigmoid gate is missing", "moe_layer", when=lambda c: _gated(c))
def gate_missing(call: Call) -> Call:
    return replace(call, case=replace(call.case, spec=replace(call.case.spec, shared_experts="ungated")))


@mutant(
    "shared_after_inplace",
    "the shared expert reads the hidden states after the routed experts have overwritten them",
    "moe_layer",
    when=unfused,
    sources=("vllm-project/vllm#28942",),
)
def shared_after_inplace(call: Call) -> Mutation:
    overwritten = with_inputs(call, hidden_states=value(routed_only(call)))
    return Term(call=routed_only(call)), Term(call=shared_only(with_slots(overwritten, ids=slots_of(call).ids)))


@mutant(
    "swap_gate_up",
    "gate and up of the shared expert are exchanged",
    "moe_layer",
    variant="shared",
    when=lambda case: unfused(case) and case.spec.shared.gated,
    sources=("alibaba/rtp-llm#1085",),
)
def shared_swapped(call: Call) -> Call:
    rows = call.inputs["shared_w13"]
    return with_inputs(call, shared_w13=np.concatenate(np.split(rows, 2, axis=0)[::-1], axis=0))


@mutant(
    "shared_not_reduced",
    "the shared expert's output is not added up over two ranks: half of its columns count",
    "moe_layer",
    when=lambda case: unfused(case) and case.shared_intermediate_size > 1,
    sources=("vllm-project/tpu-inference#3147",),
)
def shared_not_reduced(call: Call) -> Call:
    w2 = call.inputs["shared_w2"].copy()
    w2[:, w2.shape[1] // 2 :] = 0
    return with_inputs(call, shared_w2=w2)


@mutant(
    "routed_slice_shifted",
    "the routed output is read from a padded buffer one column off before the shared one is added",
    "moe_layer",
    when=unfused,
    sources=("vllm-project/vllm#45707",),
)
def routed_slice_shifted(call: Call) -> Float64:
    return np.roll(value(routed_only(call)), 1, axis=1) + value(shared_only(call))


@mutant(
    "gate_twice",
    "the shared expert's sigmoid gate is multiplied twice",
    "moe_layer",
    when=lambda c: _gated(c),
)
def gate_twice(call: Call) -> Mutation:
    logits = to_float64(call.inputs["hidden_states"]) @ to_float64(call.inputs["shared_gate"])
    with np.errstate(over="ignore"):
        return weighed(call, (1.0 / (1.0 + np.exp(-logits)))[:, None])


def _routed_sum(call: Call) -> Float64:
    """[T, 1]: what the routed slots' weights, without the factor, add up to."""
    slots = slots_of(call)
    scale = effective_factor(call.case) if routing(call.case).scaling_placement == "topk_weights" else 1.0
    total: Float64 = np.where(slots.ids < call.case.num_experts, slots.weights, 0.0).sum(axis=1, keepdims=True) / scale
    return total


def _one_more_fits(case: Case) -> bool:
    spec = routing(case)
    room = case.num_experts * spec.topk_groups // spec.num_expert_groups
    return spec.top_k < room and spec.selection == "topk" and not case.spec.experts.weight_on_input


def _gated(case: Case) -> bool:
    return case.op == "moe_layer" and case.spec.shared_experts == "gated"
