"""Routing specs of real models and logits for them, shared by the tests of all backends."""

from __future__ import annotations

import numpy as np

from moecheck import RoutingSpec
from moecheck.formats import AnyArray

LARGEST = 8.0
NOAUX = RoutingSpec(
    top_k=4,
    scoring="sigmoid",
    correction_bias="select",
    num_expert_groups=4,
    topk_groups=2,
    group_score="top2_sum",
    renormalize=True,
    renorm_eps=1e-20,
    renorm_eps_rule="add",
    routed_scaling_factor=2.5,
)
UNGROUPED = RoutingSpec(top_k=4, scoring="sigmoid", correction_bias="select", renormalize=True)
OVER_SELECTED = RoutingSpec(top_k=4, softmax_over_selected=True)
SPARSE = RoutingSpec(selection="sparsemixer")
SPECS = {
    "softmax": RoutingSpec(top_k=4),
    "softmax renormalised": RoutingSpec(top_k=4, renormalize=True),
    "softmax over the selected": OVER_SELECTED,
    "softcap": RoutingSpec(softcap=3.0),
    "biased logits": RoutingSpec(correction_bias="logits", renormalize=True),
    "chosen by logits": RoutingSpec(top_k=4, scoring="sigmoid", choose_by_logits=True, correction_bias="select"),
    "noaux_tc": NOAUX,
    "group_limited_greedy": RoutingSpec(
        num_expert_groups=4, topk_groups=2, group_mask="zero", routed_scaling_factor=16
    ),
    "sqrt_softplus": RoutingSpec(scoring="sqrt_softplus", correction_bias="select", renormalize=True),
    "clamp_min": RoutingSpec(renormalize=True, renorm_eps=0.9, renorm_eps_rule="clamp_min"),
    "where_positive": RoutingSpec(renormalize=True, renorm_eps_rule="where_positive"),
    "L2 norm": RoutingSpec(top_k=4, renormalize=True, renorm_norm=2.0),
    "per-expert scale": RoutingSpec(renormalize=True, per_expert_scale=True),
    "fused shared experts": RoutingSpec(
        num_fused_shared_experts=2, routed_scaling_factor=2.5, scaling_placement="routed_output"
    ),
    "factor needs renormalize": RoutingSpec(routed_scaling_factor=2.5, scaling_needs_renormalize=True),
    "sparsemixer": SPARSE,
}


def routing_inputs(spec: RoutingSpec, *, tokens: int, experts: int) -> dict[str, AnyArray]:
    """Logits whose gaps are far wider than fp32 rounding, with a bias that changes choices."""
    rng = np.random.default_rng(experts)
    levels = np.linspace(-LARGEST / 2, LARGEST / 2, experts)
    logits = np.stack([rng.permutation(levels) for _ in range(tokens)]) if tokens else np.zeros((0, experts))
    arrays: dict[str, AnyArray] = {"router_logits": logits.astype(np.float32)}
    if spec.correction_bias != "none":
        arrays["correction_bias"] = rng.permutation(np.linspace(0.013, 0.29, experts)).astype(np.float32)
    if spec.per_expert_scale:
        arrays["per_expert_scale"] = rng.uniform(0.5, 2.0, experts).astype(np.float32)
    return arrays
