"""Mutants of the router that a changed spec cannot express: what it reads, rows without a choice, ids of no expert."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from moecheck.cases import Case
from moecheck.formats import FORMATS, AnyArray, Float64, round_to, to_float64
from moecheck.oracle import reference_modules
from moecheck.spec import RoutingSpec

from .call import Call, Mutation, Outputs, router_arguments, slots_of, with_inputs, with_routing, with_slots
from .registry import mutant
from .routing import ROUTED, WEIGHED, effective_factor, grouped, has_factor, has_slots, of_routed, plain, weighed_by

MOST_GROUPS = 8
FLOAT64_ROUNDINGS = 256  # by which two formulas of one softmax over up to 512 experts may differ


def routing(case: Case) -> RoutingSpec:
    return case.spec.routing


def extreme(case: Case) -> bool:
    """Rows of logits that are not finite are among the inputs."""
    return case.load == "extreme"


def undefined_rows(call: Call) -> AnyArray:
    """[T] bool: rows of logits with a NaN."""
    return np.asarray(np.isnan(to_float64(call.inputs["router_logits"])).any(axis=1))


def invented_groups(case: Case) -> int:
    """How many groups a kernel that always groups would take: 8, or the most that leave two experts each."""
    spec, count = routing(case), case.num_experts
    fits = [
        groups
        for groups in (MOST_GROUPS, 4, 2)
        if count % groups == 0 and count // groups >= 2 and spec.top_k <= count // groups * (groups // 2)
    ]
    return fits[0] if fits else 1


@mutant(
    "r_nested_in_renorm",
    "the routed scaling factor is applied only where the weights are renormalised",
    *ROUTED,
    when=lambda case: has_factor(case) and not routing(case).renormalize,
    sources=("sgl-project/sglang-jax#1282",),
)
def factor_only_if_renormalised(call: Call) -> Call:
    return with_routing(call, scaling_needs_renormalize=True)


@mutant(
    "weights_by_sigmoid",
    "the chosen experts weigh the sigmoid of their logits, not renormalised, whatever the scores are",
    *ROUTED,
    when=lambda case: plain(case) and routing(case).scoring == "softmax",
    sources=("vllm-project/vllm#33620",),
)
def weights_by_sigmoid(call: Call) -> Call:
    with np.errstate(over="ignore"):
        scores = 1.0 / (1.0 + np.exp(-np.nan_to_num(to_float64(call.inputs["router_logits"]))))
    return weighed_by(call, scores, renormalize=False)


@mutant(
    "groups_invented",
    "experts are grouped although the model has no groups",
    *ROUTED,
    when=lambda case: (
        routing(case).num_expert_groups == 1 and routing(case).selection == "topk" and invented_groups(case) > 1
    ),
    sources=("vllm-project/vllm#34673",),
)
def groups_invented(call: Call) -> Call:
    groups = invented_groups(call.case)
    return with_routing(call, num_expert_groups=groups, topk_groups=max(1, groups // 2), group_score="top2_sum")


@mutant(
    "groups_first",
    "the first topk_groups groups are kept instead of the best",
    *ROUTED,
    when=grouped,
    sources=("vllm-project/vllm#25895",),
)
def first_groups(call: Call) -> Call:
    spec = routing(call.case)
    logits = to_float64(call.inputs["router_logits"]).copy()
    kept = logits.shape[1] // spec.num_expert_groups * spec.topk_groups
    arguments = {n: v for n, v in router_arguments(call).items() if n != "per_expert_scale"}
    module = reference_modules()["topk_routing"]
    _, choice = module.scores_of(**arguments)
    choice = choice.copy()
    choice[:, kept:] = -np.inf
    return _chosen(call, choice)


@mutant(
    "eps_1e-6",
    "the denominator of the renormalisation has 1e-6 added, or has lost what the spec adds",
    *ROUTED,
    when=lambda case: routing(case).renormalize and not routing(case).softmax_over_selected,
    expects=("weights", "statistics"),
)
def larger_eps(call: Call) -> Call:
    spec = routing(call.case)
    small = spec.renorm_eps_rule != "add" or spec.renorm_eps < 1e-7
    return with_routing(call, renorm_eps_rule="add", renorm_eps=1e-6 if small else 0.0)


@mutant(
    "weights_bf16",
    "the routing weights are rounded to bf16",
    *ROUTED,
    sources=("flashinfer-ai/flashinfer#2889",),
    expects=("weights", "statistics", "values"),
)
def weights_bf16(call: Call) -> Call:
    return of_routed(call, round_to(slots_of(call).weights, "bf16"))


@mutant(
    "highest_id_ties",
    "equal scores go to the highest id although the kernel declares the lowest",
    "topk_routing",
    when=lambda case: case.load == "ties" and routing(case).selection == "topk",
    expects=("tie",),
)
def highest_id_first(call: Call) -> Call:
    """Upside down: the order of ids is that of the tie rule only."""
    spec, experts = routing(call.case), call.case.num_experts
    if spec.num_fused_shared_experts or spec.num_zero_experts:
        return call
    turned = {
        name: value[..., ::-1] if isinstance(value, np.ndarray) else value
        for name, value in router_arguments(call).items()
    }
    weights, ids = reference_modules()["topk_routing"].topk_routing(**turned)
    return with_slots(call, weights=weights, ids=(experts - 1 - ids).astype(ids.dtype))


@mutant(
    "sparsemixer_single_threshold",
    "sparsemixer's second round uses the mask of the first",
    *ROUTED,
    when=lambda case: routing(case).selection == "sparsemixer" and routing(case).top_k == 2,
)
def sparsemixer_single_threshold(call: Call) -> Call:
    """w2 = softmax over what the first round left, without its own threshold about the second expert."""
    logits, ids = to_float64(call.inputs["router_logits"]), slots_of(call).ids
    first = np.take_along_axis(logits, ids[:, :1], axis=1)
    with np.errstate(all="ignore"):
        far = (first - logits) / np.maximum(np.abs(logits), first) > 2.0 * routing(call.case).sparsemixer_epsilon
        masked = np.where(far, -np.inf, logits)
        np.put_along_axis(masked, ids[:, :1], -np.inf, axis=1)
        second = np.take_along_axis(logits, ids[:, 1:2], axis=1)
        total = np.exp(masked - second).sum(axis=1, keepdims=True)
        own = np.where(np.isfinite(total) & (total > 0), 1.0 / np.maximum(total, 1.0), 1.0)
    weights = slots_of(call).weights.copy()
    weights[:, 1:2] = own * np.where(far, 0.0, 1.0)[np.arange(len(ids)), ids[:, 1]][:, None]
    return with_slots(call, weights=weights)


@mutant(
    "nan_duplicate_ids",
    "a row of logits with a NaN gives the same expert in every slot",
    "topk_routing",
    when=lambda case: extreme(case) and has_slots(case),
    sources=("vllm-project/vllm#39391",),
    expects=("routing",),
)
def nan_rows_choose_one_expert(call: Call) -> Call:
    slots, top_k = slots_of(call), routing(call.case).top_k
    ids = slots.ids.copy()
    ids[undefined_rows(call), :top_k] = 0
    return with_slots(call, ids=ids)


@mutant(
    "id_out_of_range",
    "a row of logits with a NaN gives an id beyond the last expert",
    "topk_routing",
    when=extreme,
    sources=("sgl-project/sglang#30079",),
    expects=("routing",),
)
def nan_rows_choose_no_expert(call: Call) -> Call:
    ids = slots_of(call).ids.copy()
    ids[undefined_rows(call), 0] = call.case.num_experts
    return with_slots(call, ids=ids)


@mutant(
    "padded_scores_topk",
    "the scores are padded with zeros to a multiple of 128 experts, and the padding may be chosen",
    "topk_routing",
    when=lambda case: (
        case.num_experts % 128 != 0 and routing(case).num_expert_groups == 1 and routing(case).selection == "topk"
    ),
    sources=("vllm-project/tpu-inference#1252",),
    expects=("routing",),
)
def padding_is_chosen(call: Call) -> Call:
    """Where choice scores are negative a padded 0 beats them; where they are not, the last slot is a tie at best."""
    arguments = {n: v for n, v in router_arguments(call).items() if n != "per_expert_scale"}
    module, experts = reference_modules()["topk_routing"], call.case.num_experts
    _, choice = module.scores_of(**arguments)
    padded = np.pad(choice, ((0, 0), (0, -experts % 128)))
    ids = slots_of(call).ids.copy()
    ids[:, : routing(call.case).top_k] = module.top_ids(padded, routing(call.case).top_k)
    return with_slots(call, ids=ids)


@mutant(
    "logits_reinterpreted",
    "logits of 16 bits are read as fp32: two neighbours make one number",
    "topk_routing",
    when=lambda case: FORMATS[case.dtype].storage.itemsize == 2 and case.num_experts % 2 == 0,
    sources=("flashinfer-ai/flashinfer#2889",),
)
def logits_reinterpreted(call: Call) -> Call:
    read = np.ascontiguousarray(call.inputs["router_logits"]).view(np.float32)
    return _rerouted(call, router_logits=np.nan_to_num(np.tile(read, 2).astype(np.float64)))


@mutant(
    "bias_reinterpreted",
    "the fp32 correction bias is read as bf16: every second number is the low half of another",
    *ROUTED,
    when=lambda case: routing(case).correction_bias != "none" and case.num_experts > 1,
    sources=("sgl-project/sglang#29783", "sgl-project/sglang#10440"),
)
def bias_reinterpreted(call: Call) -> Call:
    bias = np.ascontiguousarray(call.inputs["correction_bias"], np.float32)
    read = bias.view(np.uint16)[: len(bias)].view(ml_dtypes.bfloat16).astype(np.float64)
    return with_inputs(call, correction_bias=np.clip(np.nan_to_num(read), -1e30, 1e30))


@mutant(
    "ids_float",
    "the ids keep the dtype that a discarded cast should have changed: floating point",
    "topk_routing",
    sources=("sgl-project/sglang#28074",),
    expects=("contract",),
)
def ids_float(call: Call) -> Mutation:
    slots = slots_of(call)
    return Outputs(arrays=(slots.weights.astype(np.float32), slots.ids.astype(np.float32)))


@mutant(
    "zero_expert_dropped",
    "zero experts add nothing instead of the token itself",
    "moe_layer",
    when=lambda case: routing(case).num_zero_experts > 0,
    sources=("sgl-project/sglang#30387",),
)
def zero_experts_add_nothing(call: Call) -> Call:
    slots, start = slots_of(call), call.case.num_experts - routing(call.case).num_zero_experts
    zero = (slots.ids >= start) & (slots.ids < call.case.num_experts)
    return with_slots(call, ids=np.where(zero, -1, slots.ids))


@mutant(
    "zero_expert_minus1",
    "the id of a zero expert is -1 where an id in range is due",
    "topk_routing",
    when=lambda case: routing(case).num_zero_experts > 0,
    sources=("sgl-project/sglang#30387",),
    expects=("routing",),
)
def zero_expert_is_minus_one(call: Call) -> Call:
    slots, start = slots_of(call), call.case.num_experts - routing(call.case).num_zero_experts
    zero = (slots.ids >= start) & (slots.ids < call.case.num_experts)
    return with_slots(call, ids=np.where(zero, -1, slots.ids))


@mutant(
    "softmax_after_vs_before",
    "softmax over all experts and renormalised, where the spec takes the softmax of the chosen logits",
    *ROUTED,
    when=lambda case: routing(case).softmax_over_selected and case.load not in ("extreme", "ties", "near_ties"),
    sources=("vllm-project/vllm#43223",),
    equivalent="exp(l_i) / sum over all, divided by its sum over the chosen, is the softmax of the chosen logits: the "
    "denominator cancels.",
)
def softmax_before_choice(call: Call) -> Call:
    changed = with_routing(call, softmax_over_selected=False, choose_by_logits=True, renormalize=True)
    ids = slots_of(call).ids
    arguments = router_arguments(changed)
    weights = reference_modules()["topk_routing"].weights_of_ids(**arguments, topk_ids=ids)
    return with_slots(call, weights=_up_to_float64(weights, slots_of(call).weights))


@mutant("r_on_input", "the routed scaling factor multiplies the hidden states", "moe_layer", when=has_factor)
def factor_on_input(call: Call) -> Call:
    scaled = effective_factor(call.case) * to_float64(call.inputs["hidden_states"])
    return with_routing(with_inputs(call, hidden_states=scaled), routed_scaling_factor=1.0)


@mutant("weights_shuffled", "each token has the weights of the next one", *WEIGHED, when=lambda c: c.num_tokens > 1)
def weights_of_next_token(call: Call) -> Call:
    return of_routed(call, np.roll(slots_of(call).weights, -1, axis=0))


def _chosen(call: Call, choice: Float64) -> Call:
    """The call with the best experts of other choice scores, and the weights that belong to them."""
    module, spec = reference_modules()["topk_routing"], routing(call.case)
    ids = slots_of(call).ids.copy()
    ids[:, : spec.top_k] = module.top_ids(choice, spec.top_k)
    return with_slots(call, ids=ids, weights=module.weights_of_ids(**router_arguments(call), topk_ids=ids))


def _rerouted(call: Call, **inputs: AnyArray) -> Call:
    """The call with what its router makes of other inputs."""
    slots = slots_of(with_inputs(replace(call, slots=None), **inputs))
    return with_slots(call, weights=slots.weights, ids=slots.ids)


def _up_to_float64(weights: Float64, given: Float64) -> Float64:
    """The given weights where others differ from them by the rounding of float64 only, which no kernel returns."""
    return np.where(np.abs(weights - given) <= FLOAT64_ROUNDINGS * np.spacing(given), given, weights)
