"""Named cases, each with the reason why it exists, and the choice of cases for a run."""

from __future__ import annotations

from dataclasses import replace

from .cases import Case
from .errors import check_known
from .models import MODELS, model_case
from .spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec
from .strategies import draw_cases, moe_cases

DRAWN = {"quick": 2, "default": 12, "nightly": 100}
PROFILES = tuple(DRAWN)
# Distinct shapes for kernels that are compiled anew for each (seconds a time).
COMPILED_SHAPES = {"quick": 4, "default": 8, "nightly": 1000}
DTYPES = ("bf16", "fp32", "fp16")
# Models whose scaled layers are in every run: each adds semantics that the others lack.
DEFAULT_MODELS = (
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "qwen1.5-moe-a2.7b",
    "deepseek-v2",
    "deepseek-v3",
    "gpt-oss-20b",
    "llama-4-scout",
    "olmoe-1b-7b",
    "granite-3-3b",
)
LAYER_OPS = ("topk_routing", "fused_experts", "moe_layer")


def cases_for(
    op: str,
    *,
    profile: str,
    seed: int,
    small: bool = False,
    model: str | None = None,
    examples: int | None = None,
    specs: tuple[MoESpec, ...] = (),
) -> list[Case]:
    """The cases of one op: curated ones, models' layers and drawn ones.

    small: for kernels under an interpreter. model: only this model's layer. examples: number of drawn cases, the
    profile's when None. specs: the only semantics wanted. Raises UsageError for an unknown profile or model.
    """
    check_known("profile", profile, PROFILES)
    if model is not None:
        check_known("model", model, MODELS)
        cases = [model_case(model, op, num_tokens=T, dtype=d, seed=seed) for d in DTYPES for T in (64, 1)]
        return [_small(case) for case in cases] if small else cases
    cases = _curated(op, seed)
    if op in LAYER_OPS and profile != "quick":
        names = tuple(MODELS) if profile == "nightly" else DEFAULT_MODELS
        cases += [
            model_case(name, op, num_tokens=64, dtype=DTYPES[i % len(DTYPES)], seed=seed)
            for i, name in enumerate(names)
        ]
    if specs:
        cases = [changed for spec in specs for case in cases if (changed := _under(case, spec)) is not None]
    if small:
        cases = [_small(case) for case in cases]
    count = DRAWN[profile] if examples is None else examples
    drawn = draw_cases(moe_cases(op, small=small), count // 2 if small else count, seed)
    if specs:
        drawn = [case for i, d in enumerate(drawn) if (case := _under(d, specs[i % len(specs)], own=False)) is not None]
    cases += drawn
    return list({case.digest: case for case in reversed(cases)}.values())[::-1]


def few_shapes(cases: list[Case], most: int) -> tuple[list[Case], list[Case]]:
    """The cases of the first `most` distinct shapes, and those left out: what a compiler would have to compile for."""
    kept: list[Case] = []
    left: list[Case] = []
    shapes: set[str] = set()
    for case in cases:
        shape = replace(case, stratum="random", load="random", layout="contiguous", seed=0, name="", reason="").digest
        if len(shapes) < most:
            shapes.add(shape)
        (kept if shape in shapes else left).append(case)
    return kept, left


def _under(case: Case, spec: MoESpec, *, own: bool = True) -> Case | None:
    """The case with other semantics, and as many experts as these need; None where it exists for its own spec.

    own: a case whose spec is not the plain one exists for that spec, and is kept only if it is the wanted one.
    """
    if own and case.spec not in (_TOP2, spec):
        return None
    routing = spec.routing
    groups = routing.num_expert_groups
    experts = max(case.num_experts, groups * max(2, -(-routing.top_k // routing.topk_groups)))
    experts += -experts % groups
    shared = case.shared_intermediate_size or case.intermediate_size
    return replace(
        case,
        spec=spec,
        num_experts=experts,
        shared_intermediate_size=shared if spec.shared_experts != "none" else 0,
        stratum="random" if case.stratum == "integer" else case.stratum,
    )


def _small(case: Case) -> Case:
    """The same case at a size that an interpreter can run: fewer tokens, experts and columns, ragged tails kept."""
    routing = case.spec.routing
    experts = min(case.num_experts, max(8, routing.num_expert_groups * 2, routing.top_k))
    if routing.num_expert_groups > 1:
        experts = routing.num_expert_groups * max(2, -(-routing.top_k // routing.topk_groups))
    experts += routing.num_expert_groups if case.num_experts & (case.num_experts - 1) else 0
    local = case.num_local_experts
    return replace(
        case,
        num_tokens=min(case.num_tokens, 16),
        num_experts=experts,
        num_local_experts=None if local is None else max(1, local * experts // case.num_experts),
        hidden_size=_narrow(case.hidden_size, 64),
        intermediate_size=_narrow(case.intermediate_size, 32),
        shared_intermediate_size=_narrow(case.shared_intermediate_size, 32),
    )


def _narrow(size: int, most: int) -> int:
    return size if size <= most else most + (size % 64) // 4


def _curated(op: str, seed: int) -> list[Case]:
    rows = [*_COMMON, *_BY_OP[op]]
    return [
        Case(op=op, name=name, reason=reason, seed=seed, **{"spec": _TOP2, **changes})  # type: ignore[arg-type]
        for name, reason, changes in rows
    ]


Row = tuple[str, str, dict[str, object]]


def _routing(**fields: object) -> MoESpec:
    return MoESpec(routing=RoutingSpec(**fields))  # type: ignore[arg-type]  # the tables below are run by tests


def _experts(experts: ExpertSpec, top_k: int = 2) -> MoESpec:
    return MoESpec(routing=RoutingSpec(top_k=top_k, renormalize=True), experts=experts)


_TOP2 = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True))
_COMMON: list[Row] = [
    ("plain-bf16", "the ordinary call", {"dtype": "bf16"}),
    ("plain-fp32", "fp32 leaves rounding nowhere to hide in", {"dtype": "fp32"}),
    ("plain-fp16", "fp16 has a narrow range", {"dtype": "fp16"}),
    ("one-token", "decoding has one token, most experts have none", {"num_tokens": 1, "dtype": "fp32"}),
    ("no-tokens", "a rank may get no token at all", {"num_tokens": 0, "dtype": "fp32"}),
    ("ragged", "no size is a multiple of a tile", {"num_tokens": 77, "hidden_size": 90, "intermediate_size": 44}),
    ("strided", "rows lie further apart than their width", {"layout": "strided"}),
]
_LOADED: list[Row] = [
    ("skewed-load", "few experts take most tokens, some none", {"load": "skewed", "num_experts": 16}),
    ("one-expert", "all tokens of a batch agree", {"load": "one_expert", "dtype": "fp32"}),
    ("block-edges", "expert counts around a block size", {"load": "block_edges", "num_tokens": 96, "dtype": "fp32"}),
    ("padding-ids", "-1 marks slots that are nobody's", {"load": "padding", "dtype": "fp32"}),
]
_MAPPED: list[Row] = [
    ("expert-map", "only half of the experts live on this rank", {"num_local_experts": 4, "dtype": "fp32"}),
    (
        "expert-map-padding",
        "padding ids and foreign experts at once",
        {"num_local_experts": 3, "load": "padding", "num_experts": 10},
    ),
]
_VALUES: list[Row] = [
    ("integer-exact", "any wrong index or missing tile is a bit mismatch", {"stratum": "integer"}),
    ("cancelling", "outputs are small against their terms", {"stratum": "cancelling", "dtype": "fp32"}),
    ("outliers", "a few channels are 50 times larger", {"stratum": "outlier"}),
    ("all-positive", "sums only grow: a narrow accumulator drifts", {"stratum": "positive"}),
    ("zero-rows", "zero tokens must give zero", {"stratum": "zero_rows", "dtype": "fp32"}),
]
_ACTIVATIONS: list[Row] = [
    ("gelu-erf", "gelu by the error function", {"spec": _experts(ExpertSpec(activation="gelu")), "dtype": "fp32"}),
    ("gelu-tanh", "gelu by the tanh formula", {"spec": _experts(ExpertSpec(activation="gelu_tanh")), "dtype": "fp32"}),
    ("swigluoai", "GPT-OSS: interleaved, clamped, alpha, +1, biases", {"spec": _experts(SWIGLUOAI, 4)}),
    (
        "clamp-after",
        "Step-3.5 clamps after the activation",
        {"spec": _experts(ExpertSpec(swiglu_limit=7.0, limit_position="after")), "dtype": "fp32"},
    ),
    (
        "clamp-before",
        "DeepSeek-V4 clamps before the activation",
        {"spec": _experts(ExpertSpec(swiglu_limit=10.0)), "dtype": "fp32"},
    ),
    ("relu2", "Nemotron: squared relu without a gate", {"spec": _experts(ExpertSpec(activation="relu2", gated=False))}),
]
_ROUTING: list[Row] = [
    ("ties", "exact ties make several choices right", {"load": "ties", "num_experts": 64}),
    ("near-ties", "neighbouring logits differ by one ulp", {"load": "near_ties", "num_experts": 64, "dtype": "fp32"}),
    ("gapped", "no rounding can change the choice", {"load": "gapped", "num_experts": 64}),
    ("negative-logits", "all logits are below zero", {"load": "negative", "dtype": "fp32"}),
    ("many-experts", "256 experts, top 8", {"num_experts": 256, "spec": _routing(top_k=8, renormalize=True)}),
    (
        "odd-experts",
        "60 experts are no power of two",
        {"num_experts": 60, "dtype": "fp32", "spec": _routing(top_k=4)},
    ),
    (
        "sigmoid-bias",
        "a bias chooses and does not weigh",
        {
            "num_experts": 64,
            "dtype": "fp32",
            "spec": _routing(
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
            "spec": _routing(
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
        {"num_experts": 64, "dtype": "fp32", "spec": _routing(top_k=6, scoring="sqrt_softplus", renormalize=True)},
    ),
    ("soft-capped", "Grok caps its logits", {"dtype": "fp32", "spec": _routing(top_k=2, softcap=30.0)}),
    ("top-1", "one expert per token", {"dtype": "fp32", "spec": _routing(top_k=1, scoring="sigmoid")}),
]
_ROUTER_ONLY: list[Row] = [
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
            "spec": _routing(top_k=4, renormalize=True, routed_scaling_factor=2.5, num_fused_shared_experts=1),
        },
    ),
    (
        "fused-shared-on-output",
        "the factor comes later: the shared slot weighs 1/r here",
        {
            "num_experts": 16,
            "dtype": "fp32",
            "spec": _routing(
                top_k=4,
                renormalize=True,
                routed_scaling_factor=2.5,
                scaling_placement="routed_output",
                num_fused_shared_experts=2,
            ),
        },
    ),
]
_LAYERS: list[Row] = [
    (
        "shared-expert",
        "a shared expert is added once, unscaled",
        {
            "dtype": "fp32",
            "shared_intermediate_size": 128,
            "spec": MoESpec(
                routing=RoutingSpec(
                    top_k=4, renormalize=True, routed_scaling_factor=2.5, scaling_placement="routed_output"
                ),
                shared_experts="ungated",
            ),
        },
    ),
    (
        "gated-shared-expert",
        "the shared expert has a sigmoid gate",
        {
            "dtype": "fp32",
            "shared_intermediate_size": 64,
            "spec": MoESpec(routing=RoutingSpec(top_k=2), shared_experts="gated"),
        },
    ),
]
_BY_OP: dict[str, list[Row]] = {
    "topk_routing": [*_ROUTING, *_ROUTER_ONLY],
    "align_block_size": [
        *_LOADED,
        *_MAPPED,
        ("large-blocks", "most of a block is padding", {"block_size": 128, "num_experts": 64}),
    ],
    "permute": [*_LOADED, *_MAPPED, ("scales", "scales move with their rows", {"hidden_scale": True})],
    "unpermute": _LOADED,
    "problem_sizes": [*_LOADED, *_MAPPED],
    "shuffle_rows": [],
    "grouped_gemm": [
        *_LOADED[:2],
        *_VALUES[:4],
        ("bias", "each group adds its own bias", {"spec": _experts(ExpertSpec(w13_bias=True)), "dtype": "fp32"}),
    ],
    "act_and_mul": _ACTIVATIONS,
    "fused_experts": [
        *_LOADED,
        *_MAPPED,
        *_VALUES,
        *_ACTIVATIONS,
        ("biases", "the second bias is weighted too", {"spec": _experts(ExpertSpec(w13_bias=True, w2_bias=True))}),
        (
            "weight-on-input",
            "Llama-4 multiplies the input, not the output",
            {"spec": _experts(ExpertSpec(weight_on_input=True), 1), "dtype": "fp32"},
        ),
        ("many-slots", "eight experts per token", {"spec": _experts(ExpertSpec(), 8), "num_experts": 32}),
    ],
    "moe_layer": [*_ROUTING[2:4], *_LAYERS, *_VALUES[1:], ("ties", "exact ties", {"load": "ties", "num_experts": 32})],
}
