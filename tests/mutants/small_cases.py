"""Small cases of every op that, together, give each mutant something to be wrong about."""

from __future__ import annotations

from dataclasses import replace

from moecheck.cases import Case
from moecheck.quantization import SCHEMES
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec

SIZES = {"num_tokens": 20, "num_experts": 8, "hidden_size": 72, "intermediate_size": 40}
WIDE = 150  # wider than the largest tile, no multiple of the smallest
TOP2 = RoutingSpec(top_k=2, renormalize=True)
TOP4 = RoutingSpec(top_k=4, renormalize=True)
FACTOR = replace(TOP4, routed_scaling_factor=2.5, scaling_placement="routed_output")
BIASED = RoutingSpec(top_k=4, scoring="sigmoid", correction_bias="select", renormalize=True, routed_scaling_factor=2.5)
GROUPED = replace(BIASED, num_expert_groups=4, topk_groups=2, group_score="top2_sum", routed_scaling_factor=1.0)
UNNORMALISED = RoutingSpec(top_k=4, routed_scaling_factor=2.5)
ZERO = RoutingSpec(top_k=4, correction_bias="select", num_zero_experts=3, routed_scaling_factor=6.0)
HASH = RoutingSpec(top_k=4, scoring="sqrt_softplus", selection="hash", renormalize=True)
PARTS = ("experts", "shared_experts", "shared_spec", "latent_experts", "sum_factor")
ROUTINGS = (
    TOP4,
    RoutingSpec(top_k=4),
    replace(BIASED, renormalize=False, routed_scaling_factor=1.0),
    BIASED,
    GROUPED,
    RoutingSpec(top_k=4, num_expert_groups=4, topk_groups=2, routed_scaling_factor=16.0),
    RoutingSpec(top_k=4, correction_bias="logits", renormalize=True),
    RoutingSpec(top_k=4, softmax_over_selected=True),
    RoutingSpec(top_k=2, softcap=1.0),
    RoutingSpec(top_k=4, renormalize=True, per_expert_scale=True),
    RoutingSpec(top_k=2, selection="sparsemixer"),
    RoutingSpec(top_k=2, selection="sparsemixer", sparsemixer_epsilon=0.2),
    HASH,
)
ACTIVATIONS = (
    ExpertSpec(),
    SWIGLUOAI,
    ExpertSpec(activation="gelu"),
    ExpertSpec(activation="gelu_tanh"),
    ExpertSpec(swiglu_limit=7.0),
    ExpertSpec(swiglu_limit=7.0, limit_position="after"),
    ExpertSpec(activation="relu2", gated=False),
    ExpertSpec(w13_bias=True, w2_bias=True),
)


def case(op: str, routing: RoutingSpec = TOP2, **fields: object) -> Case:
    """A small case of an op; PARTS go into its spec."""
    parts = {name: fields.pop(name) for name in PARTS if name in fields}
    spec = MoESpec(routing=routing, **parts)  # type: ignore[arg-type]  # as in MoESpec
    if spec.shared_experts != "none":
        fields.setdefault("shared_intermediate_size", 48)
    if spec.latent_experts:
        fields.setdefault("latent_size", 36)
    if routing.num_expert_groups > 1:
        fields.setdefault("num_experts", 16)
    return Case(op=op, spec=spec, **{**SIZES, **fields})  # type: ignore[arg-type]  # as in Case


CASES: dict[str, tuple[Case, ...]] = {
    "moe_layer": (
        case("moe_layer", dtype="fp32"),
        case("moe_layer", TOP2, hidden_size=WIDE, intermediate_size=WIDE - 14),
        case("moe_layer", FACTOR, shared_experts="ungated", dtype="fp32"),
        case("moe_layer", TOP4, shared_experts="gated"),
        *(case("moe_layer", routing, dtype="fp32") for routing in ROUTINGS),
        case("moe_layer", GROUPED, load="negative", dtype="fp32"),
        *(case("moe_layer", TOP2, experts=experts, dtype="fp32") for experts in ACTIVATIONS),
        case("moe_layer", stratum="one_hot", dtype="fp32"),
        case("moe_layer", UNNORMALISED, dtype="fp32"),
        case("moe_layer", ZERO, dtype="fp32"),
        case("moe_layer", TOP2, num_tokens=40),
        case("moe_layer", TOP2, stratum="zero_rows"),
        case("moe_layer", RoutingSpec(top_k=1, scoring="sigmoid"), experts=ExpertSpec(weight_on_input=True)),
        case("moe_layer", TOP2, latent_experts=True, shared_experts="ungated", dtype="fp32"),
        case("moe_layer", TOP2, sum_factor=0.5**0.5, shared_experts="ungated", dtype="fp32"),
        case(
            "moe_layer",
            TOP2,
            experts=ExpertSpec(swiglu_limit=7.0, limit_position="after"),
            shared_experts="ungated",
            shared_spec=ExpertSpec(swiglu_limit=16.0, limit_position="after"),
            dtype="fp32",
        ),
    ),
    "fused_experts": (
        case("fused_experts"),
        case("fused_experts", TOP2, hidden_size=WIDE, intermediate_size=WIDE - 14),
        case("fused_experts", TOP4),
        *(case("fused_experts", TOP2, experts=experts, dtype="fp32") for experts in ACTIVATIONS),
        case("fused_experts", RoutingSpec(top_k=1), experts=ExpertSpec(weight_on_input=True), dtype="fp32"),
        case("fused_experts", num_local_experts=3, map_style="shuffled"),
        case("fused_experts", load="padding"),
        case("fused_experts", num_tokens=2),
        case("fused_experts", num_tokens=40, load="skewed"),
        case("fused_experts", stratum="zero_rows"),
        *(
            case(
                "fused_experts",
                experts=ExpertSpec(quantization=SCHEMES[name]),
                hidden_size=160,
                intermediate_size=136,
                dtype="fp32",
            )
            for name in (
                "fp8-block",
                "fp8-channel",
                "fp8-tensor-static",
                "int4-group32",
                "int4-group64-zeros",
                "mxfp4",
                "nvfp4-swizzled",
            )
        ),
        case("fused_experts", TOP2, hidden_size=96, intermediate_size=264),
        case("fused_experts", stratum="one_hot", dtype="fp32"),
    ),
    "topk_routing": (
        *(case("topk_routing", routing, dtype="fp32") for routing in ROUTINGS),
        case("topk_routing", GROUPED, load="negative", dtype="fp32"),
        case("topk_routing", replace(FACTOR, num_fused_shared_experts=1), dtype="fp32"),
        case("topk_routing", replace(TOP4, num_fused_shared_experts=2, routed_scaling_factor=2.5), dtype="fp32"),
        case("topk_routing", TOP2),
        case("topk_routing", UNNORMALISED, dtype="fp32"),
        case("topk_routing", ZERO, dtype="fp32"),
        case("topk_routing", replace(TOP4, top_k=4), load="ties", num_experts=32, dtype="fp32"),
        case("topk_routing", TOP2, load="extreme", dtype="fp32"),
        case("topk_routing", replace(BIASED, correction_bias="select"), load="negative", dtype="fp32"),
    ),
    "act_and_mul": (
        *(case("act_and_mul", experts=experts, dtype="fp32") for experts in ACTIVATIONS),
        case("act_and_mul"),
    ),
    "unpermute": (
        case("unpermute"),
        case("unpermute", TOP4),
        case("unpermute", load="padding", dtype="fp32"),
        case("unpermute", num_tokens=40),
    ),
    "grouped_gemm": (
        case("grouped_gemm"),
        case("grouped_gemm", TOP2, hidden_size=WIDE, intermediate_size=WIDE - 14),
        case("grouped_gemm", experts=ExpertSpec(w13_bias=True), dtype="fp32"),
        case("grouped_gemm", num_tokens=2),
        case("grouped_gemm", load="one_expert"),
    ),
    "expert_parallel_moe": (
        case("expert_parallel_moe", num_experts=8, num_ranks=2),
        case("expert_parallel_moe", num_experts=8, num_ranks=4, uneven_ranks=True, map_style="shuffled"),
        case("expert_parallel_moe", num_experts=8, num_ranks=4, uneven_ranks=True, dtype="fp32"),
    ),
    **{
        op: (
            case(op),
            case(op, TOP4, load="padding", num_tokens=40),
            case(op, experts=SWIGLUOAI, dtype="fp32"),
            *([case(op, num_local_experts=3, map_style="shuffled")] if op == "expert_outputs" else []),
        )
        for op in ("expert_outputs", "batched_experts")
    },
    **{
        op: (
            case(op),
            case(op, num_tokens=40, load="block_edges", num_experts=6),
            case(op, load="one_expert", num_tokens=40),
            case(op, load="padding"),
            case(op, num_local_experts=3, map_style="shuffled"),
            case(op, hidden_scale=op == "permute"),
        )
        for op in ("align_block_size", "expert_counts", "permute", "problem_sizes", "shuffle_rows")
    },
}
