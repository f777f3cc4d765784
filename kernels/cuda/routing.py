"""The fused gate in CUDA C++, host side."""

from __future__ import annotations

import torch

import moecheck

from ._library import UNAVAILABLE as UNAVAILABLE
from ._library import library
from ._matrix import side_by_side

LARGEST_EXPERTS, LARGEST_TOP_K, LARGEST_GROUPS = 1024, 32, 32
SCORING = {"softmax": 0, "sigmoid": 1, "sqrt_softplus": 2}  # MoecheckScoring of csrc/launchers.h
EPS_RULE = {"none": 0, "add": 1, "clamp_min": 2, "where_positive": 3}  # MoecheckEpsRule
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@moecheck.kernel(
    "topk_routing",
    backend="cuda",
    name="cuda/topk_routing",
    numerics=moecheck.Numerics(out="fp32"),
    deterministic=True,
    batch_invariant=True,
    tie="lowest_index",
)
def topk_routing(
    *,
    router_logits: torch.Tensor,
    correction_bias: torch.Tensor | None = None,
    per_expert_scale: torch.Tensor | None = None,
    spec: moecheck.RoutingSpec,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose and weigh experts in one launch, in fp32; equal scores go to the lowest id, non-finite ones count as 0.

    router_logits: [T, E] float32, float16 or bfloat16, E <= 1024, rows at any distance. correction_bias,
    per_expert_scale: [E] float32. Returns topk_weights [T, top_k + fused shared] float32 and topk_ids of the same
    shape, int32. Any RoutingSpec with selection="topk", top_k <= 32 and at most 32 groups. Never waits for the device.
    """
    tokens, experts = router_logits.shape
    check(spec, num_experts=experts, bias=correction_bias is not None, scale=per_expert_scale is not None)
    if router_logits.dtype not in DTYPES:
        raise moecheck.Unsupported(f"reads float32, float16 and bfloat16 logits, not {router_logits.dtype}")
    logits = side_by_side(router_logits)
    bias = None if correction_bias is None else correction_bias.contiguous()
    slots = spec.top_k + spec.num_fused_shared_experts
    weights = torch.empty(tokens, slots, dtype=torch.float32, device=logits.device)
    ids = torch.empty(tokens, slots, dtype=torch.int32, device=logits.device)
    library().gate(
        logits,
        bias if spec.correction_bias == "logits" else None,
        bias if spec.correction_bias == "select" else None,
        per_expert_scale.contiguous() if spec.per_expert_scale and per_expert_scale is not None else None,
        weights,
        ids,
        options(spec),
    )
    return weights, ids


def check(spec: moecheck.RoutingSpec, *, num_experts: int, bias: bool, scale: bool) -> None:
    """Raise Unsupported for what the kernel does not implement. bias, scale: whether they were given."""
    for name, value, largest in (
        ("num_experts", num_experts, LARGEST_EXPERTS),
        ("top_k", spec.top_k, LARGEST_TOP_K),
        ("num_expert_groups", spec.num_expert_groups, LARGEST_GROUPS),
    ):
        if value > largest:
            raise moecheck.Unsupported(f"a warp holds {name} up to {largest}, not {value}")
    if spec.selection != "topk":
        raise moecheck.Unsupported(f"implements selection='topk', not {spec.selection!r}")
    if spec.correction_bias != "none" and not bias:
        raise moecheck.Unsupported("the spec uses correction_bias, which was not given")
    if spec.per_expert_scale and not scale:
        raise moecheck.Unsupported("the spec uses per_expert_scale, which was not given")
    spec.check_num_experts(num_experts)


def options(spec: moecheck.RoutingSpec) -> dict[str, float]:
    """A spec as the fields of MoecheckGate (csrc/launchers.h)."""
    applies = spec.renormalize or not spec.scaling_needs_renormalize
    factor = spec.routed_scaling_factor if applies else 1.0
    on_weights = spec.scaling_placement == "topk_weights"
    return {
        "top_k": spec.top_k,
        "num_groups": spec.num_expert_groups,
        "topk_groups": spec.topk_groups,
        "num_shared": spec.num_fused_shared_experts,
        "scoring": SCORING[spec.scoring],
        "eps_rule": EPS_RULE[spec.renorm_eps_rule],
        "by_logits": int(spec.softmax_over_selected or spec.choose_by_logits),
        "over_selected": int(spec.softmax_over_selected),
        "top2_sum": int(spec.group_score == "top2_sum"),
        "mask_zero": int(spec.group_mask == "zero"),
        "renormalize": int(spec.renormalize),
        "softcap": spec.softcap or 0.0,
        "norm": spec.renorm_norm,
        "eps": spec.renorm_eps,
        "factor": factor if on_weights else 1.0,
        # Its net weight in the layer's output is 1, over all ranks that hold it.
        "shared_weight": (1.0 if on_weights else 1.0 / factor) / spec.shared_slot_ranks,
    }
