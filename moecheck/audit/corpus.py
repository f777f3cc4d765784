"""Cases with moecheck's own inputs on which all criteria are tried beside each other."""

from __future__ import annotations

from moecheck.cases import Case
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec

from .criterion import Criterion

DEEPSEEK = RoutingSpec(
    top_k=4,
    scoring="sigmoid",
    correction_bias="select",
    num_expert_groups=4,
    topk_groups=2,
    group_score="top2_sum",
    renormalize=True,
    routed_scaling_factor=2.5,
)
GATED = MoESpec(routing=RoutingSpec(top_k=4), shared_experts="gated")
SIZES = {"num_tokens": 48, "hidden_size": 192, "intermediate_size": 96, "dtype": "bf16"}


def corpus(seed: int) -> tuple[Case, ...]:
    """bf16 layers and expert sums of several semantics, so that each mutant of these ops means something somewhere."""
    return tuple(
        Case(op=op, spec=spec, seed=seed, **{**SIZES, **fields})  # type: ignore[arg-type]  # as in Case
        for op, spec, fields in (
            ("moe_layer", MoESpec(routing=RoutingSpec(top_k=2, renormalize=True)), {}),
            (
                "moe_layer",
                MoESpec(routing=DEEPSEEK, shared_experts="ungated"),
                {"num_experts": 16, "shared_intermediate_size": 96},
            ),
            ("moe_layer", GATED, {"shared_intermediate_size": 96}),
            ("moe_layer", MoESpec(routing=RoutingSpec(top_k=2, softmax_over_selected=True), experts=SWIGLUOAI), {}),
            ("fused_experts", MoESpec(experts=ExpertSpec(activation="gelu_tanh")), {}),
            ("fused_experts", MoESpec(experts=ExpertSpec(activation="relu2", gated=False)), {"load": "padding"}),
            ("fused_experts", MoESpec(routing=RoutingSpec(top_k=4)), {"num_local_experts": 3, "map_style": "shuffled"}),
        )
    )


def hindsight() -> dict[str, Criterion]:
    """Tolerances of every size: what a test's author could have chosen, had he known these outputs."""
    steps = [step * 10.0**power for power in (-4, -3, -2, -1) for step in (1, 2, 5)]
    allclose = {f"atol = rtol = {t:g}": Criterion(atol=t, rtol=t) for t in steps}
    norms = {f"relative L2 {t:g}": Criterion(max_relative_l2=t) for t in steps}
    return {**allclose, **norms}
