"""Hypothesis strategies over cases; they shrink to the simplest case: few tokens, few experts, default semantics."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from .cases import LOADS, LOGITS, Case
from .errors import MoecheckError
from .ops import LAYERS, OPS
from .spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec, ScalingPlacement, Scoring, SharedExperts

# Few distinct sizes: compiled kernels pay for each new shape. Simplest first, since shrinking goes to the left.
TOKENS = (64, 65, 1, 128, 33, 96)
WIDTHS = ((256, 128), (256, 256), (320, 192), (90, 44), (384, 128))
EXPERTS = (8, 16, 6, 64, 40)
SMALL_TOKENS = (4, 1, 7, 16)
SMALL_WIDTHS = ((64, 32), (32, 32), (48, 40))
SMALL_EXPERTS = (4, 8, 6)
RANKS = (2, 4, 1)
DTYPES = ("bf16", "fp32", "fp16")
VALUE_STRATA = ("random", "outlier", "cancelling", "positive", "zero_rows")
SCORINGS: tuple[Scoring, ...] = ("softmax", "sigmoid", "sqrt_softplus")
PLACEMENTS: tuple[ScalingPlacement, ...] = ("topk_weights", "routed_output", "sum")
SHARED: tuple[SharedExperts, ...] = ("none", "ungated", "gated")
DRAWN_LOADS = tuple(load for load in LOADS if load != "padding_zero")  # which takes weights
EXPERT_OPS = ("fused_experts", "expert_outputs", "batched_experts", *LAYERS)
EXPERT_SPECS = (
    ExpertSpec(),
    SWIGLUOAI,
    ExpertSpec(activation="gelu_tanh"),
    ExpertSpec(activation="gelu"),
    ExpertSpec(swiglu_limit=7.0, limit_position="after"),
    ExpertSpec(swiglu_limit=10.0),
    ExpertSpec(activation="relu2", gated=False),
    ExpertSpec(w13_bias=True, w2_bias=True),
)


@st.composite
def routing_specs(draw: st.DrawFn, *, num_experts: int, most_slots: int = 8) -> RoutingSpec:
    """Routing of every kind that fits `num_experts`."""
    groups = draw(st.sampled_from([g for g in (1, 2, 4, 8) if num_experts % g == 0 and num_experts // g >= 2]))
    topk_groups = draw(st.integers(1, groups)) if groups > 1 else 1
    most = min(most_slots, num_experts // groups * topk_groups)
    scoring = draw(st.sampled_from(SCORINGS))
    bias = draw(st.booleans())
    renormalize = draw(st.booleans())
    placement = draw(st.sampled_from(PLACEMENTS))
    return RoutingSpec(
        top_k=draw(st.integers(1, most)),
        scoring=scoring,
        num_expert_groups=groups,
        topk_groups=topk_groups,
        softcap=draw(st.sampled_from((None, 30.0))),
        group_score="top2_sum" if bias else "max",
        correction_bias="select" if bias else "none",
        renormalize=renormalize,
        renorm_eps=1e-20 if renormalize else 0.0,
        renorm_eps_rule="add" if renormalize else "none",
        routed_scaling_factor=draw(st.sampled_from((1.0, 2.5, 16.0))),
        scaling_placement=placement,
    )


@st.composite
def moe_cases(draw: st.DrawFn, op: str, *, small: bool = False) -> Case:
    """Cases of one op. small: sizes for kernels that run under an interpreter."""
    ranked = op == "expert_parallel_moe"
    ranks = draw(st.sampled_from(RANKS)) if ranked else 1
    numbers = SMALL_EXPERTS if small or ranked else EXPERTS
    num_experts = draw(st.sampled_from([E for E in numbers if E % ranks == 0]))
    hidden_size, intermediate_size = draw(st.sampled_from(SMALL_WIDTHS if small or ranked else WIDTHS))
    routed = "router_logits" in OPS[op].arg_names
    routing = draw(routing_specs(num_experts=num_experts))
    if not routed:  # ids and weights are inputs: only the number of slots is left of the routing
        routing = RoutingSpec(top_k=routing.top_k, renormalize=True)
    experts = draw(st.sampled_from(EXPERT_SPECS)) if op in (*EXPERT_OPS, "act_and_mul") else ExpertSpec()
    # A layer returns no ids, so ties would leave most of its tokens undecided; routing is where they are judged.
    loads = ("random", "gapped", "negative") if op in LAYERS else tuple(LOGITS) if routed else DRAWN_LOADS
    shared: SharedExperts = draw(st.sampled_from(SHARED)) if op == "moe_layer" else "none"
    maps = op in ("align_block_size", "expert_counts", "permute", "problem_sizes", "fused_experts", "expert_outputs")
    return Case(
        op=op,
        spec=MoESpec(routing=routing, experts=experts, shared_experts=shared),
        num_tokens=draw(st.sampled_from(SMALL_TOKENS if small or ranked else TOKENS)),
        num_experts=num_experts,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        shared_intermediate_size=0 if shared == "none" else intermediate_size,
        num_ranks=ranks,
        uneven_ranks=ranked and draw(st.booleans()),
        num_local_experts=draw(st.sampled_from((None, num_experts // 2))) if maps else None,
        map_style=draw(st.sampled_from(("linear", "round_robin", "shuffled"))) if maps or ranked else "linear",
        hidden_scale=draw(st.booleans()) if op == "permute" else False,
        dtype=draw(st.sampled_from(DTYPES)),
        stratum=draw(st.sampled_from(VALUE_STRATA)) if op in (*EXPERT_OPS, "grouped_gemm") else "random",
        load=draw(st.sampled_from(loads)),
        layout=draw(st.sampled_from(("contiguous", "strided"))),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def smaller_than(draw: st.DrawFn, case: Case) -> Case:
    """Cases like the given one whose sizes are at most its own; simplest first."""
    routing = case.spec.routing
    least = routing.top_k if routing.num_expert_groups == 1 else case.num_experts
    ranks = draw(_sizes(case.num_ranks, 1))
    values: dict[str, object] = {
        "num_tokens": draw(_sizes(case.num_tokens, 1)),
        "num_experts": draw(_sizes(case.num_experts, max(least, ranks))),
        "num_ranks": ranks,
        "uneven_ranks": case.uneven_ranks and draw(st.booleans()),
        "hidden_size": draw(_sizes(case.hidden_size, 1)),
        "intermediate_size": draw(_sizes(case.intermediate_size, 1)),
        "stratum": draw(st.sampled_from(_first("random", case.stratum))),
        "load": draw(st.sampled_from(_first("random", case.load))),
        "layout": draw(st.sampled_from(_first("contiguous", case.layout))),
        "name": "",
        "reason": "",
    }
    if case.num_local_experts is not None:
        values["num_local_experts"] = min(case.num_local_experts, int(str(values["num_experts"])))
    if case.latent_size:
        values["latent_size"] = draw(_sizes(case.latent_size, 1))
    if case.shared_intermediate_size:
        values["shared_intermediate_size"] = draw(_sizes(case.shared_intermediate_size, 1))
    try:
        return replace(case, **values)  # type: ignore[arg-type]  # names and types are those of Case
    except MoecheckError:
        return replace(case, num_tokens=min(case.num_tokens, int(str(values["num_tokens"]))), name="", reason="")


def draw_cases(strategy: st.SearchStrategy[Case], count: int, seed_value: int) -> list[Case]:
    """The first `count` distinct cases that Hypothesis draws with this seed, the same on every run."""
    drawn: dict[str, Case] = {}

    @seed(seed_value)
    @settings(
        max_examples=max(2 * count, 1),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Case) -> None:
        drawn.setdefault(case.id, case)

    if count:
        collect()
    return list(drawn.values())[:count]


def _sizes(largest: int, least: int) -> st.SearchStrategy[int]:
    powers = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if least <= size < largest]
    return st.sampled_from([*powers, largest])


def _first(simplest: str, own: str) -> tuple[str, ...]:
    return (simplest,) if simplest == own else (simplest, own)
