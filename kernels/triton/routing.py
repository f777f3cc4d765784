"""Top-k routing in Triton, host side: one launch from logits to weights and ids."""

from __future__ import annotations

import torch

import moecheck
import triton

from ._jit_routing import topk_routing_kernel
from ._launch import INTERPRETED

LARGEST_EXPERTS, LARGEST_TOP_K = 1024, 32
TILE = 4096 if INTERPRETED else 2048  # scores of a program


@moecheck.kernel(
    "topk_routing",
    backend="triton",
    name="triton/topk_routing",
    numerics=moecheck.Numerics(out="fp32"),
    deterministic=True,
    tie="lowest_index",
)
def topk_routing(
    *,
    router_logits: torch.Tensor,
    correction_bias: torch.Tensor | None = None,
    per_expert_scale: torch.Tensor | None = None,
    spec: moecheck.RoutingSpec,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores in fp32, biased and grouped choice, renormalisation, scaling, fused shared slots; ties to the lowest id.

    router_logits: [T, E], E <= 1024. correction_bias, per_expert_scale: [E] float32. Returns topk_weights [T, top_k +
    fused shared] float32 and topk_ids of the same shape, int32.
    """
    _check(router_logits, correction_bias, per_expert_scale, spec)
    (tokens, experts), logits = router_logits.shape, router_logits
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    slots, groups = spec.top_k + spec.num_fused_shared_experts, spec.num_expert_groups
    weights = torch.empty(tokens, slots, dtype=torch.float32, device=logits.device)
    ids = torch.empty(tokens, slots, dtype=torch.int32, device=logits.device)
    if tokens:
        block_g = triton.next_power_of_2(groups)
        block_p = triton.next_power_of_2(max(2 if groups > 1 else 16, experts // groups))
        block_t = max(1, min(triton.next_power_of_2(tokens), TILE // (block_g * block_p)))
        factor = scaling_factor(spec)
        topk_routing_kernel[(triton.cdiv(tokens, block_t),)](
            logits, weights if correction_bias is None else correction_bias,
            weights if per_expert_scale is None else per_expert_scale, weights, ids, tokens, experts,
            logits.stride(0), spec.renorm_eps, factor if spec.scaling_placement == "topk_weights" else 1.0,
            (1.0 if spec.scaling_placement == "topk_weights" else 1.0 / factor) / spec.shared_slot_ranks,
            TOP_K=spec.top_k, SHARED=spec.num_fused_shared_experts, SCORING=spec.scoring, CAP=spec.softcap or 0.0,
            BY_LOGITS=spec.softmax_over_selected or spec.choose_by_logits, OVER_SELECTED=spec.softmax_over_selected,
            BIAS=spec.correction_bias, HAS_SCALE=spec.per_expert_scale, GROUPS=groups, TOPK_GROUPS=spec.topk_groups,
            TOP2=spec.group_score == "top2_sum", GROUP_FILL=0.0 if spec.group_mask == "zero" else float("-inf"),
            RENORMALIZE=spec.renormalize, NORM=int(spec.renorm_norm), EPS_RULE=spec.renorm_eps_rule,
            BLOCK_T=block_t, BLOCK_G=block_g, BLOCK_P=block_p, BLOCK_S=triton.next_power_of_2(slots),
        )  # fmt: skip
    return weights, ids


def scaling_factor(spec: moecheck.RoutingSpec) -> float:
    """The routed scaling factor that applies: 1 where the spec ties it to `renormalize` and that is off."""
    return 1.0 if spec.scaling_needs_renormalize and not spec.renormalize else spec.routed_scaling_factor


def _check(
    logits: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None, spec: moecheck.RoutingSpec
) -> None:
    if logits.shape[1] > LARGEST_EXPERTS or spec.top_k + spec.num_fused_shared_experts > LARGEST_TOP_K:
        raise moecheck.Unsupported(f"one tile holds {LARGEST_EXPERTS} experts and {LARGEST_TOP_K} slots, not more")
    if spec.selection != "topk":
        raise moecheck.Unsupported(f"implements selection by topk, not {spec.selection!r}")
    if spec.renorm_norm not in (1.0, 2.0):
        raise moecheck.Unsupported(f"implements renorm_norm of 1 and 2, not {spec.renorm_norm}")
    if spec.correction_bias != "none" and bias is None:
        raise moecheck.Unsupported("the spec uses correction_bias, which was not given")
    if spec.per_expert_scale and scale is None:
        raise moecheck.Unsupported("the spec uses per_expert_scale, which was not given")
