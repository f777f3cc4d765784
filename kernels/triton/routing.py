"""Top-k routing in Triton, host side."""

from __future__ import annotations

import torch

import moecheck
import triton

from ._jit_routing import topk_routing_kernel
from ._launch import tile

LARGEST_EXPERTS, LARGEST_TOP_K = 1024, 32


@moecheck.kernel(
    "topk_routing",
    backend="triton",
    name="triton/topk_routing",
    numerics=moecheck.Numerics(out="fp32"),
    deterministic=True,
    tie="lowest_index",
)
def topk_routing(
    *, router_logits: torch.Tensor, correction_bias: torch.Tensor | None = None, spec: moecheck.RoutingSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax or sigmoid scores in fp32, biased choice, renormalisation; equal scores go to the lowest id.

    router_logits: [T, E], E <= 1024. correction_bias: [E] float32. Returns topk_weights [T, top_k] float32 and topk_ids
    [T, top_k] int32.
    """
    _check(router_logits, correction_bias, spec)
    (tokens, experts), logits = router_logits.shape, router_logits
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    weights = torch.empty(tokens, spec.top_k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(tokens, spec.top_k, dtype=torch.int32, device=logits.device)
    scaled = spec.scaling_placement == "topk_weights" and (spec.renormalize or not spec.scaling_needs_renormalize)
    if tokens:
        block_t, block_e = tile(tokens, experts, elements=4096)
        topk_routing_kernel[(triton.cdiv(tokens, block_t),)](
            logits, weights if correction_bias is None else correction_bias, weights, ids, tokens, experts,
            logits.stride(0), spec.renorm_eps, spec.routed_scaling_factor if scaled else 1.0,
            TOP_K=spec.top_k, SCORING=spec.scoring, BY_LOGITS=spec.softmax_over_selected or spec.choose_by_logits,
            OVER_SELECTED=spec.softmax_over_selected, HAS_BIAS=spec.correction_bias == "select",
            RENORMALIZE=spec.renormalize, EPS_RULE=spec.renorm_eps_rule,
            BLOCK_T=block_t, BLOCK_E=block_e, BLOCK_S=triton.next_power_of_2(spec.top_k),
        )  # fmt: skip
    return weights, ids


def _check(logits: torch.Tensor, bias: torch.Tensor | None, spec: moecheck.RoutingSpec) -> None:
    if logits.shape[1] > LARGEST_EXPERTS or spec.top_k > LARGEST_TOP_K:
        raise moecheck.Unsupported(f"one tile holds {LARGEST_EXPERTS} experts and {LARGEST_TOP_K} slots, not more")
    supported: dict[str, tuple[object, ...]] = {
        "scoring": ("softmax", "sigmoid"),
        "softcap": (None,),
        "correction_bias": ("none", "select"),
        "num_expert_groups": (1,),
        "renorm_norm": (1.0,),
        "num_fused_shared_experts": (0,),
        "per_expert_scale": (False,),
        "selection": ("topk",),
    }
    for field, values in supported.items():
        if getattr(spec, field) not in values:
            raise moecheck.Unsupported(f"implements {field} in {values}, not {getattr(spec, field)!r}")
    if spec.correction_bias == "select" and bias is None:
        raise moecheck.Unsupported("the spec uses correction_bias, which was not given")
