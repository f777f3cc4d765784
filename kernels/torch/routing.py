"""Choice and weights of experts in PyTorch, every score in fp32.

Not batch invariant on CPUs: torch's elementwise functions (sigmoid, logaddexp, gelu) compute what is left over of a
vector register by another formula, so a score's last bit depends on its place in the batch.
"""

from __future__ import annotations

import moecheck
import torch


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="torch/topk_routing",
    numerics=moecheck.Numerics(out="fp32"),
    deterministic=True,
    tie="lowest_index",
)
def topk_routing(
    *,
    router_logits: torch.Tensor,
    correction_bias: torch.Tensor | None = None,
    per_expert_scale: torch.Tensor | None = None,
    token_ids: torch.Tensor | None = None,
    tid2eid: torch.Tensor | None = None,
    spec: moecheck.RoutingSpec,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose and weigh experts by any RoutingSpec; equal scores go to the lowest id, non-finite scores count as 0.

    router_logits: [T, E]. correction_bias, per_expert_scale: [E] float32. token_ids: [T], tid2eid: [vocabulary, top_k].
    Returns topk_weights [T, top_k + fused shared] float32 and topk_ids of the same shape, int32.
    """
    logits = router_logits.float()
    if spec.softcap is not None:
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
    if spec.correction_bias == "logits":
        logits = logits + _given(correction_bias, "correction_bias")
    if spec.selection == "sparsemixer":
        weights, ids = _sparsemixer(logits, spec)
    elif spec.selection == "hash":
        ids = _given(tid2eid, "tid2eid")[_given(token_ids, "token_ids").long()].long()
        weights = _weights(logits, ids, spec)
    else:
        weights, ids = _topk(logits, correction_bias, spec)
    factor = scaling_factor(spec)
    if spec.renormalize:
        weights = weights / _denominator(weights, spec)
    if spec.per_expert_scale:
        weights = weights * _given(per_expert_scale, "per_expert_scale")[ids]
    if spec.scaling_placement == "topk_weights":
        weights = weights * factor
    if spec.num_fused_shared_experts:
        weights, ids = _append_shared(weights, ids, num_experts=logits.shape[1], factor=factor, spec=spec)
    return weights, ids.to(torch.int32)


def scaling_factor(spec: moecheck.RoutingSpec) -> float:
    """The routed scaling factor that applies: 1 where the spec ties it to `renormalize` and that is off."""
    return 1.0 if spec.scaling_needs_renormalize and not spec.renormalize else spec.routed_scaling_factor


def _given(values: torch.Tensor | None, name: str) -> torch.Tensor:
    if values is None:
        raise moecheck.Unsupported(f"the spec uses {name}, which was not given")
    return values


def _scores(logits: torch.Tensor, spec: moecheck.RoutingSpec) -> torch.Tensor:
    if spec.scoring == "softmax":
        return torch.softmax(logits, dim=-1)
    if spec.scoring == "sigmoid":
        return torch.sigmoid(logits)
    return torch.logaddexp(logits, torch.zeros_like(logits)).sqrt()


def _topk(
    logits: torch.Tensor, bias: torch.Tensor | None, spec: moecheck.RoutingSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    by_logits = spec.softmax_over_selected or spec.choose_by_logits
    choice = logits.where(_defined(logits), 0.0) if by_logits else _finite_scores(logits, spec)
    if spec.correction_bias == "select":
        choice = choice + _given(bias, "correction_bias")
    if spec.num_expert_groups > 1:
        choice = _mask_groups(choice, spec)
    ids = choice.sort(dim=-1, descending=True, stable=True).indices[:, : spec.top_k]
    return _weights(logits, ids, spec), ids


def _weights(logits: torch.Tensor, ids: torch.Tensor, spec: moecheck.RoutingSpec) -> torch.Tensor:
    """The scores of the chosen experts, or the softmax over their logits: [T, top_k]."""
    if not spec.softmax_over_selected:
        return _finite_scores(logits, spec).gather(1, ids)
    return torch.softmax(logits.gather(1, ids), dim=-1).where(_defined(logits), 0.0)


def _finite_scores(logits: torch.Tensor, spec: moecheck.RoutingSpec) -> torch.Tensor:
    return _scores(logits, spec).nan_to_num(0.0, posinf=0.0, neginf=0.0)


def _defined(logits: torch.Tensor) -> torch.Tensor:
    return logits.amax(dim=-1, keepdim=True).isfinite()


def _mask_groups(choice: torch.Tensor, spec: moecheck.RoutingSpec) -> torch.Tensor:
    groups = spec.num_expert_groups
    grouped = choice.reshape(len(choice), groups, choice.shape[1] // groups)
    score = grouped.amax(dim=-1) if spec.group_score == "max" else grouped.topk(2, dim=-1).values.sum(dim=-1)
    kept = score.sort(dim=-1, descending=True, stable=True).indices[:, : spec.topk_groups]
    mask = torch.ones_like(score, dtype=torch.bool).scatter(1, kept, False)
    fill = float("-inf") if spec.group_mask == "neg_inf" else 0.0
    return grouped.masked_fill(mask.unsqueeze(-1), fill).flatten(1)


def _sparsemixer(logits: torch.Tensor, spec: moecheck.RoutingSpec) -> tuple[torch.Tensor, torch.Tensor]:
    remaining, weights, ids = logits, [], []
    for _ in range(spec.top_k):
        best, chosen = remaining.sort(dim=-1, descending=True, stable=True)
        best, chosen = best[:, :1], chosen[:, :1]
        far = (best - logits) / torch.maximum(logits.abs(), best) > 2 * spec.sparsemixer_epsilon
        weights.append(torch.softmax(remaining.masked_fill(far, float("-inf")), dim=-1).gather(1, chosen))
        ids.append(chosen)
        remaining = remaining.scatter(1, chosen, float("-inf"))
    return torch.cat(weights, dim=1), torch.cat(ids, dim=1)


def _denominator(weights: torch.Tensor, spec: moecheck.RoutingSpec) -> torch.Tensor:
    total: torch.Tensor = torch.linalg.vector_norm(weights, ord=spec.renorm_norm, dim=-1, keepdim=True)
    if spec.renorm_eps_rule == "add":
        return total + spec.renorm_eps
    if spec.renorm_eps_rule == "clamp_min":
        return total.clamp(min=spec.renorm_eps)
    if spec.renorm_eps_rule == "where_positive":
        return torch.where(total > 0, total, 1.0)
    return total


def _append_shared(
    weights: torch.Tensor, ids: torch.Tensor, *, num_experts: int, factor: float, spec: moecheck.RoutingSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots E, E+1, ... whose net weight in the layer's output is 1, over all ranks that hold them."""
    shape = (len(ids), spec.num_fused_shared_experts)
    weight = (1.0 if spec.scaling_placement == "topk_weights" else 1.0 / factor) / spec.shared_slot_ranks
    shared = torch.arange(num_experts, num_experts + shape[1], device=ids.device).expand(shape)
    return torch.cat([weights, weights.new_full(shape, weight)], dim=1), torch.cat([ids, shared], dim=1)
