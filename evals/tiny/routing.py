"""The reference path's router: fp32 logits, choice and weights of experts."""

from __future__ import annotations

import torch
from torch.nn import functional

from moecheck.spec import RoutingSpec


def router_logits(hidden: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
    """hidden: [T, H], router: [E, H], both float32. Returns [T, E]."""
    return functional.linear(hidden, router)


def choice_scores(logits: torch.Tensor, bias: torch.Tensor | None, spec: RoutingSpec) -> torch.Tensor:
    """What experts are chosen by: [T, E] float32, -Inf outside of the groups that may be chosen from."""
    choice = scores(logits, spec)
    if bias is not None:
        choice = choice + bias
    if spec.num_expert_groups == 1:
        return choice
    grouped = choice.view(len(choice), spec.num_expert_groups, -1)
    best = grouped.topk(2, dim=-1).values.sum(dim=-1)
    kept = best.topk(spec.topk_groups, dim=-1).indices
    lost = torch.ones_like(best, dtype=torch.bool).scatter_(1, kept, False)
    return grouped.masked_fill(lost[..., None], float("-inf")).flatten(1)


def scores(logits: torch.Tensor, spec: RoutingSpec) -> torch.Tensor:
    """Softmax or sigmoid of the logits: [T, E]."""
    return logits.softmax(dim=-1) if spec.scoring == "softmax" else logits.sigmoid()


def route(
    logits: torch.Tensor, bias: torch.Tensor | None, spec: RoutingSpec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights [T, top_k] float32, ids [T, top_k] int64 and choice scores [T, E].

    Of what a RoutingSpec can say: softmax or sigmoid, a bias for the choice, groups by the sum of their best two,
    renormalisation with an eps that is added, and a factor on the weights; what the embedded models need. Sources:
    transformers models/glm4_moe Glm4MoeTopkRouter, models/qwen3_moe Qwen3MoeTopKRouter.
    """
    choice = choice_scores(logits, bias, spec)
    ids = choice.topk(spec.top_k, dim=-1).indices
    weights = scores(logits, spec).gather(1, ids)
    if spec.renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + spec.renorm_eps)
    return weights * spec.routed_scaling_factor, ids, choice
