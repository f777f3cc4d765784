"""Hypothesis strategies over the semantics that `strategies` does not draw: rules of single models and engines."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from .cases import Case
from .spec import EpsRule, ExpertSpec, MoESpec, RoutingSpec
from .strategies import DTYPES, PLACEMENTS, SCORINGS, SHARED, SMALL_TOKENS, SMALL_WIDTHS, TOKENS, WIDTHS

OPS = ("topk_routing", "act_and_mul", "fused_experts", "moe_layer")  # the ops that read these semantics
KINDS = ("divisor", "hash", "biased_logits", "chosen_logits", "groups", "sparsemixer", "scaling", "special_experts")
EXPERTS = (
    ExpertSpec(activation="situ", situ_beta=2.0),
    ExpertSpec(activation="situ", situ_beta=4.0, situ_up_beta=3.0),
    ExpertSpec(gated=False),
    ExpertSpec(activation="gelu", gated=False),
    ExpertSpec(activation="gelu_tanh", gated=False, w13_bias=True, w2_bias=True),
    ExpertSpec(swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0),
    ExpertSpec(swiglu_alpha=1.5, swiglu_beta=0.5, swiglu_limit=10.0, w13_bias=True),
    ExpertSpec(activation="gelu_tanh", swiglu_limit=3.0, limit_position="after"),
    ExpertSpec(activation="relu2"),
)
DIVISORS: tuple[tuple[EpsRule, float], ...] = (
    ("none", 0.0),
    ("add", 1e-6),
    ("clamp_min", 0.125),
    ("where_positive", 0.0),
)
LOADS = ("random", "gapped", "negative", "ties", "extreme")


@st.composite
def semantic_routing(draw: st.DrawFn, *, num_experts: int) -> RoutingSpec:
    """Routing of one of KINDS among `num_experts`, a multiple of 4."""
    kind = draw(st.sampled_from(KINDS))
    spec = RoutingSpec(
        top_k=draw(st.integers(1, 4)),
        scoring=draw(st.sampled_from(SCORINGS)),
        renormalize=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from((1.0, 2.5))),
    )
    if kind == "divisor":
        rule, eps = draw(st.sampled_from(DIVISORS))
        return replace(
            spec,
            renormalize=True,
            renorm_eps_rule=rule,
            renorm_eps=eps,
            renorm_norm=draw(st.sampled_from((1.0, 2.0, 3.0))),
        )
    if kind == "hash":
        return replace(spec, selection="hash")
    if kind == "biased_logits":
        return replace(spec, correction_bias="logits", softcap=draw(st.sampled_from((None, 5.0))))
    if kind == "chosen_logits":
        over = draw(st.booleans()) and spec.scoring == "softmax"
        bias = draw(st.booleans())
        return replace(
            spec,
            softmax_over_selected=over,
            choose_by_logits=not over,
            correction_bias="select" if bias else "none",
        )
    if kind == "groups":
        biased = draw(st.booleans())
        return replace(
            spec,
            num_expert_groups=4,
            topk_groups=2,
            group_mask=draw(st.sampled_from(("zero", "neg_inf"))),
            group_score=draw(st.sampled_from(("max", "top2_sum"))),
            correction_bias="select" if biased else "none",
            top_k=min(spec.top_k, num_experts // 4),
        )
    if kind == "sparsemixer":
        return RoutingSpec(top_k=draw(st.integers(1, 2)), selection="sparsemixer", sparsemixer_epsilon=0.1)
    if kind == "scaling":
        return replace(
            spec,
            routed_scaling_factor=2.5,
            scaling_needs_renormalize=True,
            scaling_placement=draw(st.sampled_from(PLACEMENTS)),
            per_expert_scale=draw(st.booleans()),
        )
    shared = draw(st.booleans())
    return replace(
        spec,
        num_fused_shared_experts=int(shared),
        shared_slot_ranks=draw(st.sampled_from((1, 2))) if shared else 1,
        num_zero_experts=draw(st.sampled_from((0, 2))),
        scaling_placement=draw(st.sampled_from(PLACEMENTS)),
    )


@st.composite
def semantic_layers(draw: st.DrawFn, *, num_experts: int) -> MoESpec:
    """Layers with latent experts, shared experts of another kind, or a factor on the sum."""
    routing = draw(semantic_routing(num_experts=num_experts))
    experts, shared = draw(st.sampled_from(EXPERTS)), draw(st.sampled_from(SHARED))
    special = routing.num_zero_experts or routing.num_fused_shared_experts
    other = draw(st.sampled_from((None, ExpertSpec(), ExpertSpec(swiglu_limit=16.0, limit_position="after"))))
    return MoESpec(
        routing=routing,
        experts=experts,
        shared_experts=shared,
        shared_spec=None if shared == "none" else other,
        latent_experts=draw(st.booleans()) and not special,
        sum_factor=draw(st.sampled_from((1.0, 0.5, 0.5**0.5))),
    )


@st.composite
def semantic_cases(draw: st.DrawFn, op: str, *, small: bool = False) -> Case:
    """Cases of one of OPS. small: sizes for kernels that run under an interpreter."""
    num_experts = draw(st.sampled_from((16, 8) if small else (16, 32, 60)))
    hidden_size, intermediate_size = draw(st.sampled_from(SMALL_WIDTHS if small else WIDTHS))
    if op == "moe_layer":
        spec = draw(semantic_layers(num_experts=num_experts))
    elif op == "topk_routing":
        spec = MoESpec(routing=draw(semantic_routing(num_experts=num_experts)))
    else:
        top_k = draw(st.integers(1, 4))
        spec = MoESpec(routing=RoutingSpec(top_k=top_k, renormalize=True), experts=draw(st.sampled_from(EXPERTS)))
    loads = {"topk_routing": LOADS, "moe_layer": LOADS[:3], "fused_experts": ("random", "padding_zero")}
    return Case(
        op=op,
        spec=spec,
        num_tokens=draw(st.sampled_from(SMALL_TOKENS if small else TOKENS)),
        num_experts=num_experts,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        shared_intermediate_size=0 if spec.shared_experts == "none" else intermediate_size,
        latent_size=intermediate_size // 2 if spec.latent_experts else 0,
        dtype=draw(st.sampled_from(DTYPES)),
        load=draw(st.sampled_from(loads.get(op, ("random",)))),
        seed=draw(st.integers(0, 99)),
    )
