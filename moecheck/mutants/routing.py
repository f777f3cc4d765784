"""Mutants of the router: which experts a token chooses, and with what weights."""

from __future__ import annotations

import numpy as np

from moecheck.cases import Case
from moecheck.formats import Float64, round_to, to_float64
from moecheck.oracle import reference_modules
from moecheck.spec import RoutingSpec

from .call import Call, router_arguments, slots_of, with_inputs, with_routing, with_slots
from .registry import mutant

ROUTED = ("topk_routing", "moe_layer")
WEIGHED = (*ROUTED, "fused_experts", "unpermute")


def routing(case: Case) -> RoutingSpec:
    return case.spec.routing


def effective_factor(case: Case) -> float:
    """The r that takes effect."""
    factor: float = reference_modules()["topk_routing"].routed_factor(routing(case))
    return factor


def has_factor(case: Case) -> bool:
    """A factor that this op applies."""
    in_op = case.op == "moe_layer" or routing(case).scaling_placement == "topk_weights"
    return effective_factor(case) != 1.0 and in_op


def plain(case: Case) -> bool:
    """Weights that are scores at the chosen ids."""
    return routing(case).selection == "topk" and not routing(case).softmax_over_selected


def grouped(case: Case) -> bool:
    return routing(case).topk_groups < routing(case).num_expert_groups


def has_slots(case: Case) -> bool:
    return routing(case).top_k > 1


def weighed_by(call: Call, raw: Float64, *, renormalize: bool | None = None) -> Call:
    """The call with its routed weights taken from raw scores [T, E], renormalised and scaled as its spec says."""
    module, spec = reference_modules()["topk_routing"], routing(call.case)
    slots, experts = slots_of(call), raw.shape[1]
    routed = slots.ids < experts
    weights = np.where(routed, np.take_along_axis(raw, np.where(routed, slots.ids, 0), axis=1), 0.0)
    if spec.renormalize if renormalize is None else renormalize:
        weights = module.renormalize(weights, spec=spec)
    if spec.scaling_placement == "topk_weights":
        weights = weights * module.routed_factor(spec)
    return with_slots(call, weights=np.where(routed, weights, slots.weights))


def of_routed(call: Call, weights: Float64) -> Call:
    """The call with other weights [T, slots] in the slots of routed experts; fused shared slots keep theirs."""
    slots = slots_of(call)
    if call.case.op not in ROUTED:
        return with_slots(call, weights=weights)
    return with_slots(call, weights=np.where(slots.ids < call.case.num_experts, weights, slots.weights))


@mutant(
    "drop_r",
    "the routed scaling factor is missing",
    *ROUTED,
    when=has_factor,
    sources=("sgl-project/sglang#8511", "vllm-project/vllm#43769", "sgl-project/sglang#8688"),
)
def drop_r(call: Call) -> Call:
    return with_routing(call, routed_scaling_factor=1.0)


@mutant(
    "r_twice",
    "the routed scaling factor is applied twice",
    *ROUTED,
    when=has_factor,
    sources=("vllm-project/vllm#24119", "vllm-project/vllm#45037", "sgl-project/sglang#35152"),
)
def r_twice(call: Call) -> Call:
    return with_routing(call, routed_scaling_factor=routing(call.case).routed_scaling_factor ** 2)


@mutant(
    "renorm_flip",
    "the weights are renormalised although the spec does not say so, or not although it does",
    *ROUTED,
    when=lambda case: plain(case) and not (has_factor(case) and routing(case).scaling_needs_renormalize),
    sources=("vllm-project/vllm#31246", "vllm-project/vllm#33620", "ROCm/aiter#4460"),
)
def renorm_flip(call: Call) -> Call:
    return with_routing(call, renormalize=not routing(call.case).renormalize)


@mutant("renorm_again", "the given weights are divided by their sum", "fused_experts", "unpermute")
def renorm_again(call: Call) -> Call:
    weights = slots_of(call).weights
    total = weights.sum(axis=1, keepdims=True)
    return with_slots(call, weights=weights / np.where(total == 0.0, 1.0, total))


@mutant(
    "raw_logits_as_weights",
    "the raw logits of the chosen experts serve as weights",
    *ROUTED,
    when=lambda case: plain(case) and not routing(case).renormalize,
    sources=("sgl-project/sglang#35160",),
)
def raw_logits_as_weights(call: Call) -> Call:
    return weighed_by(call, np.nan_to_num(to_float64(call.inputs["router_logits"])), renormalize=False)


@mutant(
    "biased_scores_as_weights",
    "the biased scores, meant for the choice only, serve as weights",
    *ROUTED,
    when=lambda case: plain(case) and routing(case).correction_bias == "select" and not routing(case).choose_by_logits,
    sources=("flashinfer-ai/flashinfer#2889",),
)
def biased_scores_as_weights(call: Call) -> Call:
    arguments = {n: v for n, v in router_arguments(call).items() if n != "per_expert_scale"}
    _, choice = reference_modules()["topk_routing"].scores_of(**arguments)
    return weighed_by(call, choice)


@mutant(
    "bias_ignored",
    "the correction bias is ignored",
    *ROUTED,
    when=lambda case: routing(case).correction_bias != "none",
    sources=("vllm-project/vllm#21586",),
)
def bias_ignored(call: Call) -> Call:
    return with_routing(call, correction_bias="none")


@mutant(
    "bias_on_logits",
    "the correction bias is added to the logits instead of the scores, or to the scores instead of the logits",
    *ROUTED,
    when=lambda case: routing(case).correction_bias != "none",
)
def bias_on_logits(call: Call) -> Call:
    return with_routing(call, correction_bias="logits" if routing(call.case).correction_bias == "select" else "select")


@mutant(
    "logits_bf16",
    "the logits are rounded to bf16 before the scores",
    *ROUTED,
    when=lambda case: case.op == "moe_layer" or case.dtype != "bf16",
    sources=("vllm-project/vllm#25936", "vllm-project/vllm#50761"),
)
def logits_bf16(call: Call) -> Call:
    return with_inputs(call, router_logits=round_to(to_float64(call.inputs["router_logits"]), "bf16"))


@mutant(
    "bias_bf16",
    "the correction bias is rounded to bf16",
    *ROUTED,
    when=lambda case: routing(case).correction_bias != "none",
    sources=("sgl-project/sglang#29783", "vllm-project/vllm#47797"),
)
def bias_bf16(call: Call) -> Call:
    return with_inputs(call, correction_bias=round_to(to_float64(call.inputs["correction_bias"]), "bf16"))


@mutant(
    "groups_ignored",
    "the expert groups are ignored",
    *ROUTED,
    when=grouped,
    sources=("vllm-project/vllm#49982", "vllm-project/vllm#25895"),
)
def groups_ignored(call: Call) -> Call:
    return with_routing(call, num_expert_groups=1, topk_groups=1, group_score="max")


@mutant(
    "group_score_max_vs_top2",
    "a group's score is its maximum instead of the sum of its best two, or the other way round",
    *ROUTED,
    when=lambda case: grouped(case) and case.num_experts >= 2 * routing(case).num_expert_groups,
)
def group_score_max_vs_top2(call: Call) -> Call:
    return with_routing(call, group_score="top2_sum" if routing(call.case).group_score == "max" else "max")


@mutant(
    "group_mask_zero",
    "masked groups get the score 0 instead of -Inf",
    *ROUTED,
    when=lambda case: grouped(case) and routing(case).group_mask == "neg_inf",
    sources=("sgl-project/sglang#3705", "flashinfer-ai/flashinfer#2168"),
)
def group_mask_zero(call: Call) -> Call:
    return with_routing(call, group_mask="zero")


@mutant("wrong_topk_group", "one more group than topk_groups may be chosen from", *ROUTED, when=grouped)
def wrong_topk_group(call: Call) -> Call:
    return with_routing(call, topk_groups=routing(call.case).topk_groups + 1)


@mutant(
    "sigmoid<->softmax",
    "the scores are a sigmoid instead of a softmax",
    *ROUTED,
    variant="sigmoid",
    when=lambda case: routing(case).scoring != "sigmoid" and routing(case).selection == "topk",
    sources=("vllm-project/vllm#43223", "vllm-project/vllm#44347"),
)
def scored_by_sigmoid(call: Call) -> Call:
    return with_routing(call, scoring="sigmoid", softmax_over_selected=False)


@mutant(
    "sigmoid<->softmax",
    "the scores are a softmax instead of a sigmoid",
    *ROUTED,
    variant="softmax",
    when=lambda case: routing(case).scoring != "softmax" and routing(case).selection == "topk",
    sources=("vllm-project/vllm#33919", "vllm-project/vllm#28569"),
)
def scored_by_softmax(call: Call) -> Call:
    return with_routing(call, scoring="softmax")


@mutant(
    "softmax_over_all",
    "the softmax runs over all experts instead of the chosen ones",
    *ROUTED,
    when=lambda case: routing(case).softmax_over_selected,
    sources=("vllm-project/vllm#33620",),
)
def softmax_over_all(call: Call) -> Call:
    return with_routing(call, softmax_over_selected=False, renormalize=False)


@mutant(
    "softcap_missing", "the logits' soft cap is missing", *ROUTED, when=lambda case: routing(case).softcap is not None
)
def softcap_missing(call: Call) -> Call:
    return with_routing(call, softcap=None)


@mutant(
    "per_expert_scale_missing", "the scale per expert is missing", *ROUTED, when=lambda c: routing(c).per_expert_scale
)
def per_expert_scale_missing(call: Call) -> Call:
    return with_routing(call, per_expert_scale=False)


@mutant(
    "sparsemixer_as_softmax",
    "a plain softmax replaces the two rounds of sparsemixer",
    *ROUTED,
    when=lambda case: routing(case).selection == "sparsemixer",
)
def sparsemixer_as_softmax(call: Call) -> Call:
    return with_routing(call, selection="topk")


@mutant(
    "second_best",
    "the best expert is passed over",
    *ROUTED,
    when=lambda case: case.num_experts > routing(case).top_k and routing(case).selection != "hash",
)
def second_best(call: Call) -> Call:
    module, spec = reference_modules()["topk_routing"], routing(call.case)
    arguments = {n: v for n, v in router_arguments(call).items() if n != "per_expert_scale"}
    _, choice = module.scores_of(**arguments)
    ids = slots_of(call).ids.copy()
    ids[:, : spec.top_k] = module.top_ids(choice, spec.top_k + 1)[:, 1:]
    return with_slots(call, ids=ids, weights=module.weights_of_ids(**router_arguments(call), topk_ids=ids))


@mutant("uniform_weights", "every slot weighs the same", *WEIGHED, when=has_slots)
def uniform_weights(call: Call) -> Call:
    share = effective_factor(call.case) if routing(call.case).scaling_placement == "topk_weights" else 1.0
    if call.case.op not in ROUTED:
        share = 1.0
    slots = slots_of(call)
    return of_routed(call, np.full(slots.weights.shape, share / routing(call.case).top_k))


@mutant("weights_ignored", "the routing weights are ignored: every slot weighs 1", *WEIGHED)
def weights_ignored(call: Call) -> Call:
    return of_routed(call, np.ones(slots_of(call).weights.shape))


@mutant("weights_reversed", "the weights stand in the reverse order of the ids", *WEIGHED, when=has_slots)
def weights_reversed(call: Call) -> Call:
    weights, top_k = slots_of(call).weights, routing(call.case).top_k
    return of_routed(call, np.concatenate([weights[:, :top_k][:, ::-1], weights[:, top_k:]], axis=1))


@mutant("weights_sorted", "the ids are sorted and their weights are not", *WEIGHED, when=has_slots)
def weights_sorted(call: Call) -> Call:
    return with_slots(call, ids=np.sort(slots_of(call).ids, axis=1))


@mutant(
    "weights_twice",
    "the routing weights are applied twice (squared)",
    *WEIGHED,
    sources=("sgl-project/sglang#23545",),
)
def weights_twice(call: Call) -> Call:
    return of_routed(call, np.square(slots_of(call).weights))


@mutant("k-1", "the last slot of each token is dropped", *WEIGHED, when=has_slots)
def last_slot_dropped(call: Call) -> Call:
    weights = slots_of(call).weights.copy()
    weights[:, routing(call.case).top_k - 1] = 0.0
    return of_routed(call, weights)


@mutant(
    "k-1",
    "one expert fewer than top_k is chosen",
    "moe_layer",
    variant="chosen",
    when=lambda case: has_slots(case) and (routing(case).renormalize or routing(case).softmax_over_selected),
)
def one_fewer_chosen(call: Call) -> Call:
    return with_routing(call, top_k=routing(call.case).top_k - 1)


@mutant("only_first_slot", "only the first slot of each token counts", *WEIGHED, when=lambda c: routing(c).top_k > 2)
def only_first_slot(call: Call) -> Call:
    weights = slots_of(call).weights.copy()
    weights[:, 1 : routing(call.case).top_k] = 0.0
    return of_routed(call, weights)
