"""The named cases of routers as data: each with the reason why it exists."""

from __future__ import annotations

from .spec import MoESpec, RoutingSpec

Row = tuple[str, str, dict[str, object]]


def routing(**fields: object) -> MoESpec:
    """A layer of which only the routing is special."""
    return MoESpec(routing=RoutingSpec(**fields))  # type: ignore[arg-type]  # the tables below are run by tests


ROUTING: list[Row] = [
    ("ties", "exact ties make several choices right", {"load": "ties", "num_experts": 64}),
    ("near-ties", "neighbouring logits differ by one ulp", {"load": "near_ties", "num_experts": 64, "dtype": "fp32"}),
    ("gapped", "no rounding can change the choice", {"load": "gapped", "num_experts": 64}),
    ("negative-logits", "all logits are below zero", {"load": "negative", "dtype": "fp32"}),
    ("many-experts", "256 experts, top 8", {"num_experts": 256, "spec": routing(top_k=8, renormalize=True)}),
    (
        "odd-experts",
        "60 experts are no power of two",
        {"num_experts": 60, "dtype": "fp32", "spec": routing(top_k=4)},
    ),
    (
        "sigmoid-bias",
        "a bias chooses and does not weigh",
        {
            "num_experts": 64,
            "dtype": "fp32",
            "spec": routing(
                top_k=6,
                scoring="sigmoid",
                correction_bias="select",
                renormalize=True,
                renorm_eps=1e-20,
                renorm_eps_rule="add",
                routed_scaling_factor=2.5,
            ),
        },
    ),
    (
        "grouped-negative",
        "negative choice scores: masked groups must not win with 0",
        {
            "num_experts": 32,
            "dtype": "fp32",
            "load": "negative",
            "spec": routing(
                top_k=4,
                scoring="sigmoid",
                correction_bias="select",
                num_expert_groups=4,
                topk_groups=2,
                group_score="top2_sum",
                renormalize=True,
            ),
        },
    ),
    (
        "sqrt-softplus",
        "DeepSeek-V4's scores",
        {"num_experts": 64, "dtype": "fp32", "spec": routing(top_k=6, scoring="sqrt_softplus", renormalize=True)},
    ),
    ("soft-capped", "Grok caps its logits", {"dtype": "fp32", "spec": routing(top_k=2, softcap=30.0)}),
    ("top-1", "one expert per token", {"dtype": "fp32", "spec": routing(top_k=1, scoring="sigmoid")}),
]
ROUTER_ONLY: list[Row] = [
    (
        "widest",
        "512 experts, 22 per token: the largest routing of a published model",
        {"num_experts": 512, "dtype": "fp32", "spec": routing(top_k=22, scoring="sigmoid", renormalize=True)},
    ),
    (
        "odd-widest",
        "999 experts, 32 per token: past every published model, and rows that begin at no multiple of 16 bytes",
        {"num_experts": 999, "dtype": "fp32", "spec": routing(top_k=32, scoring="sigmoid", renormalize=True)},
    ),
    (
        "softmax-bias",
        "ERNIE and LongCat choose by softmax scores plus a bias",
        {
            "num_experts": 64,
            "dtype": "fp32",
            "spec": routing(
                top_k=6,
                correction_bias="select",
                renormalize=True,
                renorm_eps=1e-12,
                renorm_eps_rule="clamp_min",
            ),
        },
    ),
    (
        "biased-logits",
        "a bias on the logits changes the weights too",
        {"num_experts": 32, "dtype": "fp32", "spec": routing(top_k=4, correction_bias="logits", renormalize=True)},
    ),
    (
        "per-expert-scale",
        "Gemma-4 scales each expert's weight",
        {"num_experts": 32, "dtype": "fp32", "spec": routing(top_k=4, renormalize=True, per_expert_scale=True)},
    ),
    (
        "zero-group-mask",
        "DeepSeek-V2 masks groups with 0",
        {
            "num_experts": 32,
            "dtype": "fp32",
            "spec": routing(top_k=4, num_expert_groups=4, topk_groups=2, group_mask="zero", routed_scaling_factor=16.0),
        },
    ),
    (
        "zero-experts",
        "LongCat: the last ids stand for no expert at all",
        {"num_experts": 12, "dtype": "fp32", "spec": routing(top_k=4, correction_bias="select", num_zero_experts=4)},
    ),
    (
        "sparsemixer",
        "Phi-3.5's two rounds with a threshold",
        {"num_experts": 16, "dtype": "fp32", "spec": routing(top_k=2, selection="sparsemixer")},
    ),
    (
        "extreme-logits",
        "equal, tiny, huge, infinite and NaN rows",
        {"load": "extreme", "num_experts": 16, "dtype": "fp32"},
    ),
    (
        "fused-shared",
        "one shared expert rides along as a slot of net weight 1",
        {
            "num_experts": 16,
            "dtype": "fp32",
            "spec": routing(top_k=4, renormalize=True, routed_scaling_factor=2.5, num_fused_shared_experts=1),
        },
    ),
    (
        "fused-shared-on-output",
        "the factor comes later: the shared slot weighs 1/r here",
        {
            "num_experts": 16,
            "dtype": "fp32",
            "spec": routing(
                top_k=4,
                renormalize=True,
                routed_scaling_factor=2.5,
                scaling_placement="routed_output",
                num_fused_shared_experts=2,
            ),
        },
    ),
]
