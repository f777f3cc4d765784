"""Reference of `topk_routing`: which experts each token chooses, and with what weights.

Notation, per token: l logits, s scores, b correction bias, c choice scores, S chosen ids in slot order, w weights,
r factor. The formulas are those of RoutingSpec's docstring; all arithmetic is float64.

Tie rule: value descending, then lowest id. It is the reference's own; other ids may be as legal, routing is set-valued.
NaN rule: a score that is not finite counts as 0, so ids stay distinct and in range (vllm-project/vllm#39391). A softmax
with a NaN or +Inf logit, or with no finite one, is undefined for the whole row: every score of the row is 0, and where
experts are chosen by their logits every choice score too. A logit of -Inf is no fault: that expert is switched off.
0/0 rule: renormalising a row whose chosen scores are all 0 gives 0 under the eps rules `add`, `clamp_min` (both with
eps > 0) and `where_positive`, and NaN under `none`, as the formula says.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecheck.formats import AnyArray, Float64, round_to, to_float64
from moecheck.spec import RoutingSpec

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


def topk_routing(
    *,
    router_logits: AnyArray,
    spec: RoutingSpec,
    correction_bias: AnyArray | None = None,
    per_expert_scale: AnyArray | None = None,
    token_ids: npt.NDArray[np.integer] | None = None,
    tid2eid: npt.NDArray[np.integer] | None = None,
) -> tuple[Float64, Int32]:
    """Weights and ids of each token's experts, best choice score first, then the fused shared slots.

    router_logits: [num_tokens, num_experts] any float. correction_bias, per_expert_scale: [num_experts] any float,
    finite. token_ids: [num_tokens] int, tid2eid: [vocabulary, top_k] int, distinct experts in a row (`hash`: in the
    table's order). Each is read only where `spec` says so. Returns topk_weights [num_tokens, top_k +
    num_fused_shared_experts] float64 and topk_ids, the same shape, int32.
    """
    num_tokens, num_experts = router_logits.shape
    spec.check_num_experts(num_experts)
    if spec.selection == "hash":
        routed = hashed_ids(token_ids=token_ids, tid2eid=tid2eid)
    else:
        _, choice = scores_of(router_logits=router_logits, spec=spec, correction_bias=correction_bias)
        routed = top_ids(mask_groups(choice, spec=spec), spec.top_k)
    shared = np.tile(num_experts + np.arange(spec.num_fused_shared_experts, dtype=np.int32), (num_tokens, 1))
    topk_ids = np.concatenate([routed, shared], axis=1)
    topk_weights = weights_of_ids(
        router_logits=router_logits,
        topk_ids=topk_ids,
        spec=spec,
        correction_bias=correction_bias,
        per_expert_scale=per_expert_scale,
    )
    return topk_weights, topk_ids


def hashed_ids(*, token_ids: npt.NDArray[np.integer] | None, tid2eid: npt.NDArray[np.integer] | None) -> Int32:
    """S = tid2eid[token_id], [num_tokens, top_k] int32 (DeepSeek-V4's first layers: transformers models/deepseek_v4).

    token_ids: [num_tokens] int. tid2eid: [vocabulary, top_k] int.
    """
    if token_ids is None or tid2eid is None:
        raise ValueError("the spec needs token_ids and tid2eid, which were not both given.")
    chosen: Int32 = tid2eid[token_ids].astype(np.int32)
    return chosen


def scores_of(
    *, router_logits: AnyArray, spec: RoutingSpec, correction_bias: AnyArray | None = None
) -> tuple[Float64, Float64]:
    """Scores s and choice scores c, both [num_tokens, num_experts] float64, c before the mask of the expert groups.

    c = s, or l where experts are chosen by their logits (choose_by_logits, softmax_over_selected, sparsemixer), plus b
    if correction_bias is `select` (DeepSeek-V3, arXiv:2412.19437 section 2.1.2, equation 16). s never contains b then.
    """
    logits = logits_of(router_logits=router_logits, spec=spec, correction_bias=correction_bias)
    scores = np.nan_to_num(_SCORING[spec.scoring](logits), nan=0.0, posinf=0.0, neginf=0.0)
    choice = np.where(softmax_defined(logits), logits, 0.0) if chooses_by_logits(spec) else scores
    if spec.correction_bias == "select":
        choice = choice + _given("correction_bias", correction_bias)
    return scores, choice


def logits_of(*, router_logits: AnyArray, spec: RoutingSpec, correction_bias: AnyArray | None = None) -> Float64:
    """The logits as scored: softcap * tanh(l / softcap), then + b if correction_bias is `logits`.

    Returns [num_tokens, num_experts] float64. Sources: soft-capping as in Gemma 2 (arXiv:2408.00118, section 2) and the
    router of Grok; the biased logits are those of sgl-kernel's topk_softmax(correction_bias).
    """
    logits = to_float64(router_logits)
    if spec.softcap is not None:
        logits = spec.softcap * np.tanh(logits / spec.softcap)
    if spec.correction_bias == "logits":
        logits = logits + _given("correction_bias", correction_bias)
    return logits


def chooses_by_logits(spec: RoutingSpec) -> bool:
    """Whether the choice scores are logits instead of scores."""
    return spec.choose_by_logits or spec.softmax_over_selected or spec.selection == "sparsemixer"


def softmax_defined(logits: Float64) -> Bool:
    """[num_tokens, 1]: rows without NaN and +Inf and with at least one finite logit, those whose softmax is finite."""
    largest: Float64 = np.max(logits, axis=-1, keepdims=True)
    return np.isfinite(largest)


def softmax(logits: Float64) -> Float64:
    """exp(l_i - max l) / sum_j exp(l_j - max l) over the last axis; NaN where it is undefined."""
    with np.errstate(invalid="ignore"):
        powers: Float64 = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
        total: Float64 = np.sum(powers, axis=-1, keepdims=True)
        return powers / total


def sigmoid(logits: Float64) -> Float64:
    """1 / (1 + exp(-l)), written with exp(-|l|) so that nothing overflows."""
    power = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, power) / (1.0 + power)


def sqrt_softplus(logits: Float64) -> Float64:
    """sqrt(log(1 + exp(l))): DeepSeek-V4 (transformers models/deepseek_v4, scoring_func="sqrtsoftplus")."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.logaddexp(0.0, logits))


def group_scores(choice: Float64, *, spec: RoutingSpec) -> Float64:
    """Score of each expert group, [num_tokens, num_expert_groups] float64.

    choice: [num_tokens, num_experts] float64, choice scores.
    `max`: DeepSeek-V2 (arXiv:2405.04434, section 2.2.2). `top2_sum`: DeepSeek-V3 (transformers models/deepseek_v3).
    """
    grouped = _by_group(choice, spec)
    count = 1 if spec.group_score == "max" else 2
    total: Float64 = np.sum(np.sort(grouped, axis=-1)[..., -count:], axis=-1)
    return total


def mask_groups(choice: Float64, *, spec: RoutingSpec) -> Float64:
    """Choice scores with those outside the best topk_groups groups set to -Inf or 0 (group_mask).

    0 is DeepSeek-V2's and Mistral-4's, whose scores are never negative. A masked expert beats a negative choice score:
    that is what the spec says then. choice: [num_tokens, num_experts] float64, and so is the result.
    """
    if spec.num_expert_groups == 1:
        return choice
    best = top_ids(group_scores(choice, spec=spec), spec.topk_groups)
    kept = np.zeros((len(choice), spec.num_expert_groups), dtype=np.bool_)
    np.put_along_axis(kept, best, True, axis=-1)
    fill = -np.inf if spec.group_mask == "neg_inf" else 0.0
    return np.where(kept[..., None], _by_group(choice, spec), fill).reshape(choice.shape)


def top_ids(values: Float64, count: int) -> Int32:
    """Ids of the `count` largest values of each row, int32: value descending, then lowest id."""
    return np.argsort(-values, axis=-1, kind="stable")[:, :count].astype(np.int32)


def weights_of_ids(
    *,
    router_logits: AnyArray,
    topk_ids: npt.NDArray[np.integer],
    spec: RoutingSpec,
    correction_bias: AnyArray | None = None,
    per_expert_scale: AnyArray | None = None,
    scores: str = "fp32",
) -> Float64:
    """The weights that belong to given ids, whoever chose them: [num_tokens, slots] float64.

    topk_ids: [num_tokens, slots] int. An id below num_experts is a routed expert, num_experts and above a fused shared
    expert, and -1 is padding: its weight is 0 and it takes no part in the normalisation. `sparsemixer` reads the slots
    in the order picked. scores: the format that the scores are stored in before the weights are taken from them, as in
    Numerics (`fp32`: not rounded); for the ordinary rule only, not for sparsemixer or a softmax over the chosen logits.
    """
    num_experts = router_logits.shape[1]
    last = num_experts + spec.num_fused_shared_experts - 1
    if np.any((topk_ids < -1) | (topk_ids > last)):
        raise ValueError(f"topk_ids must lie between -1 and {last}.")
    routed = (topk_ids >= 0) & (topk_ids < num_experts)
    rows = np.where(routed, topk_ids, 0)
    logits = logits_of(router_logits=router_logits, spec=spec, correction_bias=correction_bias)
    if spec.selection == "sparsemixer":
        weights = _sparsemixer(logits, rows, routed, spec)
    elif spec.softmax_over_selected:
        weights = _softmax_over(logits, rows, routed)
    else:
        every, _ = scores_of(router_logits=router_logits, spec=spec, correction_bias=correction_bias)
        weights = np.take_along_axis(every if scores == "fp32" else round_to(every, scores), rows, axis=-1)
    weights = np.where(routed, weights, 0.0)
    if spec.renormalize:
        weights = renormalize(weights, spec=spec)
    if spec.scaling_placement == "topk_weights":
        weights = weights * routed_factor(spec)
    if spec.per_expert_scale:
        weights = weights * _given("per_expert_scale", per_expert_scale)[rows]
    weights = np.where(routed, weights, 0.0)
    return np.where(topk_ids >= num_experts, shared_slot_weight(spec), weights)


def renormalize(weights: Float64, *, spec: RoutingSpec) -> Float64:
    """Divide w by d = (sum w^p)^(1/p), guarded by renorm_eps_rule.

    weights: [num_tokens, slots] float64, 0 where a slot is not routed; and so is the result. p = 1: Mixtral and most
    others; any p: DBRX (transformers models/dbrx, moe_normalize_expert_weights). `add`: DeepSeek-V3, `clamp_min`:
    ERNIE-4.5 (models/ernie4_5_moe, moe_norm_min), `where_positive`: vLLM's topk kernels.
    """
    total: Float64 = np.linalg.norm(weights, ord=spec.renorm_norm, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return weights / guarded(total, spec=spec)


def guarded(total: Float64, *, spec: RoutingSpec) -> Float64:
    """The divisor (sum w^p)^(1/p) as renorm_eps_rule guards it against 0."""
    if spec.renorm_eps_rule == "add":
        return total + spec.renorm_eps
    if spec.renorm_eps_rule == "clamp_min":
        return np.maximum(total, spec.renorm_eps)
    if spec.renorm_eps_rule == "where_positive":
        return np.where(total > 0, total, 1.0)
    return total


def routed_factor(spec: RoutingSpec) -> float:
    """The r that takes effect: 1 where scaling_needs_renormalize and the spec does not renormalize."""
    return 1.0 if spec.scaling_needs_renormalize and not spec.renormalize else spec.routed_scaling_factor


def shared_slot_weight(spec: RoutingSpec) -> float:
    """Weight of a fused shared slot such that its net weight in the layer's output is 1, over all ranks that hold it.

    1 where r is inside the routed weights; 1/r where the layer multiplies what the slots add up to by r, be it as
    `routed_output` or as `sum` (semantics: y = r * sum_S w_i E_i + shared in all three placements).
    """
    weight = 1.0 if spec.scaling_placement == "topk_weights" else 1.0 / routed_factor(spec)
    return weight / spec.shared_slot_ranks


def _softmax_over(logits: Float64, rows: npt.NDArray[np.integer], kept: Bool) -> Float64:
    """Softmax over the `kept` slots' logits (GPT-OSS, Granite); 0 where the softmax of the whole row is undefined."""
    chosen = np.where(kept, np.take_along_axis(logits, rows, axis=-1), -np.inf)
    return np.nan_to_num(np.where(softmax_defined(logits), softmax(chosen), 0.0))


def _sparsemixer(logits: Float64, rows: npt.NDArray[np.integer], kept: Bool, spec: RoutingSpec) -> Float64:
    """Weights of SparseMixer at inference (Phi-3.5-MoE: arXiv:2409.12136; transformers models/phimoe, `sparsemixer`).

    Round by round with m the largest logit left: experts j with (m - l_j) / max(|l_j|, m) > 2 eps get -Inf, the weight
    is the softmax of the others at the chosen expert, which then leaves. 0/0 is not above the threshold. The weights of
    a row need not sum to 1.
    """
    left = np.where(softmax_defined(logits), logits, np.nan)
    weights = np.zeros(rows.shape)
    for slot in range(rows.shape[1]):
        best = np.max(left, axis=-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            far = (best - left) / np.maximum(np.abs(left), best) > 2 * spec.sparsemixer_epsilon
        picked = rows[:, slot : slot + 1]
        shares = softmax(np.where(far, -np.inf, left))
        weights[:, slot] = np.take_along_axis(shares, picked, axis=-1)[:, 0]
        gone = np.where(kept[:, slot : slot + 1], -np.inf, np.take_along_axis(left, picked, axis=-1))
        np.put_along_axis(left, picked, gone, axis=-1)
    return np.nan_to_num(weights)


def _by_group(choice: Float64, spec: RoutingSpec) -> Float64:
    """Choice scores as [num_tokens, num_expert_groups, experts per group]; experts of a group have consecutive ids."""
    return choice.reshape(len(choice), spec.num_expert_groups, choice.shape[1] // spec.num_expert_groups)


def _given(name: str, values: AnyArray | None) -> Float64:
    """An optional array that the spec needs, as float64."""
    if values is None:
        raise ValueError(f"the spec needs {name}, which was not given.")
    return to_float64(values)


_SCORING = {"softmax": softmax, "sigmoid": sigmoid, "sqrt_softplus": sqrt_softplus}
