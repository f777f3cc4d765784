"""The named cases as data: each with the reason why it exists."""

from __future__ import annotations

from .curated_ranks import RANKS
from .curated_routing import ROUTER_ONLY, ROUTING, Row, routing
from .spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec


def _experts(experts: ExpertSpec, top_k: int = 2) -> MoESpec:
    return MoESpec(routing=RoutingSpec(top_k=top_k, renormalize=True), experts=experts)


TOP2 = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True))
COMMON: list[Row] = [
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
        "padding ids and foreign experts at once: an id of -1 must not wrap to the last expert",
        {"num_local_experts": 3, "load": "padding", "num_experts": 10, "dtype": "fp32"},
    ),
    (
        "expert-map-round-robin",
        "every second expert lives here, as round-robin placement has it",
        {"num_local_experts": 8, "num_experts": 16, "map_style": "round_robin"},
    ),
    (
        "expert-map-shuffled",
        "local ids in no order, as after rebalancing",
        {"num_local_experts": 5, "num_experts": 12, "map_style": "shuffled", "load": "padding", "dtype": "fp32"},
    ),
]
_LARGE: list[Row] = [
    (
        "several-tiles",
        "more tokens, columns and terms than one tile has",
        {"num_tokens": 150, "hidden_size": 584, "intermediate_size": 136, "load": "skewed", "num_experts": 4},
    ),
    (
        "long-sums",
        "a long all-positive sum: an accumulator that truncates or is too narrow drifts",
        {"num_tokens": 16, "hidden_size": 2048, "intermediate_size": 128, "num_experts": 4, "stratum": "positive"},
    ),
]
_MANY: list[Row] = [
    (
        "many-rows",
        "more experts and rows than one block counts",
        {
            "num_tokens": 1030,
            "num_experts": 160,
            "hidden_size": 40,
            "intermediate_size": 24,
            "spec": MoESpec(routing=RoutingSpec(top_k=6, renormalize=True)),
        },
    ),
]
_WIDE: list[Row] = [
    (
        "wide-rows",
        "rows of 8 KiB, which kernels may move by other means than short ones",
        {"num_tokens": 24, "hidden_size": 2048, "dtype": "fp32"},
    ),
]
_VALUES: list[Row] = [
    ("integer-exact", "any wrong index or missing tile is a bit mismatch", {"stratum": "integer"}),
    (
        "integer-biases",
        "a bias that is lost, misplaced or not weighted is a bit mismatch",
        {"stratum": "integer", "spec": _experts(ExpertSpec(w13_bias=True, w2_bias=True))},
    ),
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
# Twice as many gates as there are finite numbers, with ups of 1 and then of powers of two; see moecheck.probes.
_EVERY_BF16: dict[str, object] = {"stratum": "one_hot", "num_tokens": 510, "intermediate_size": 256}
_EVERY_FP16: dict[str, object] = {"stratum": "one_hot", "num_tokens": 496, "intermediate_size": 256, "dtype": "fp16"}
_PROBES: list[Row] = [
    ("every-gate-bf16", "silu at all finite numbers of bf16", _EVERY_BF16),
    ("every-gate-fp16", "silu at all finite numbers of fp16", _EVERY_FP16),
    ("every-gate-fp32", "silu in fp32 at all finite numbers of bf16", {**_EVERY_BF16, "dtype": "fp32"}),
    ("every-gate-gelu", "gelu by the error function", {**_EVERY_BF16, "spec": _experts(ExpertSpec(activation="gelu"))}),
    (
        "every-gate-gelu-tanh",
        "gelu by the tanh formula",
        {**_EVERY_BF16, "spec": _experts(ExpertSpec(activation="gelu_tanh"))},
    ),
    ("every-gate-swigluoai", "alpha, limits and + 1 at every gate", {**_EVERY_FP16, "spec": _experts(SWIGLUOAI, 4)}),
]
_EXPERT_PROBE: dict[str, object] = {
    "stratum": "one_hot",
    "num_tokens": 128,
    "hidden_size": 128,
    "intermediate_size": 128,
}
_EXPERT_PROBES: list[Row] = [
    ("activation-bf16", "the activation inside an expert, value by value", _EXPERT_PROBE),
    ("activation-fp32", "as before, where no store hides a digit", {**_EXPERT_PROBE, "dtype": "fp32"}),
    (
        "activation-gelu",
        "gelu by the error function, not by tanh",
        {**_EXPERT_PROBE, "dtype": "fp32", "spec": _experts(ExpertSpec(activation="gelu"))},
    ),
    (
        "activation-gelu-tanh",
        "gelu by tanh, not by the error function",
        {**_EXPERT_PROBE, "spec": _experts(ExpertSpec(activation="gelu_tanh"))},
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
# Layers of real models whose parts are tested one by one elsewhere: here they meet.
_WHOLE_LAYERS: list[Row] = [
    (
        "layer-scaled-gelu",
        "Gemma-4: a scale per expert and gelu by tanh, no size a multiple of a tile",
        {
            "dtype": "fp32",
            "num_experts": 16,
            "hidden_size": 150,
            "intermediate_size": 136,
            "spec": MoESpec(
                routing=RoutingSpec(top_k=4, renormalize=True, per_expert_scale=True),
                experts=ExpertSpec(activation="gelu_tanh"),
            ),
        },
    ),
    (
        "layer-sparsemixer",
        "Phi-3.5's routing, with gelu by the error function",
        {
            "dtype": "fp32",
            "num_experts": 16,
            "spec": MoESpec(
                routing=RoutingSpec(top_k=2, selection="sparsemixer"), experts=ExpertSpec(activation="gelu")
            ),
        },
    ),
    (
        "layer-zero-experts",
        "LongCat: experts that hand the token on, chosen by softmax scores and a bias",
        {
            "dtype": "fp32",
            "num_experts": 12,
            "spec": routing(top_k=4, correction_bias="select", routed_scaling_factor=6.0, num_zero_experts=4),
        },
    ),
    (
        "layer-relu2",
        "Nemotron-3: squared relu without a gate, sigmoid scores, a bias and a shared expert",
        {
            "dtype": "fp32",
            "num_experts": 16,
            "shared_intermediate_size": 64,
            "spec": MoESpec(
                routing=RoutingSpec(
                    top_k=4,
                    scoring="sigmoid",
                    correction_bias="select",
                    renormalize=True,
                    routed_scaling_factor=2.5,
                ),
                experts=ExpertSpec(activation="relu2", gated=False),
                shared_experts="ungated",
            ),
        },
    ),
    (
        "layer-clamps",
        "clamps behind the activation, and experts in groups by softmax scores",
        {
            "dtype": "fp32",
            "num_experts": 16,
            "spec": MoESpec(
                routing=RoutingSpec(top_k=4, num_expert_groups=4, topk_groups=2, routed_scaling_factor=16.0),
                experts=ExpertSpec(swiglu_limit=7.0, limit_position="after"),
            ),
        },
    ),
]
_LAYER_PROBES: list[Row] = [
    (
        "layer-probe",
        "gates of every size in one row: groups of a quantiser of the intermediate values, several to a row, differ",
        {**_EXPERT_PROBE, "num_experts": 4, "intermediate_size": 256, "dtype": "fp32"},
    ),
]
BY_OP: dict[str, list[Row]] = {
    "topk_routing": [*ROUTING, *ROUTER_ONLY],
    "align_block_size": [
        *_LOADED,
        *_MAPPED,
        *_MANY,
        ("large-blocks", "most of a block is padding", {"block_size": 128, "num_experts": 64}),
    ],
    "expert_counts": [*_LOADED, *_MAPPED, *_MANY],
    "permute": [
        *_LOADED,
        *_MAPPED,
        *_MANY,
        *_WIDE,
        ("scales", "scales move with their rows", {"hidden_scale": True}),
        (
            "scales-map-padding",
            "scales of several columns, foreign experts and padding",
            {"hidden_scale": True, "hidden_size": 392, "num_local_experts": 5, "load": "padding", "dtype": "fp32"},
        ),
    ],
    "unpermute": [*_LOADED, *_MANY, *_WIDE],
    "problem_sizes": [*_LOADED, *_MAPPED, *_MANY],
    "shuffle_rows": [*_WIDE],
    "grouped_gemm": [
        *_LOADED[:2],
        *_LARGE,
        _VALUES[0],
        *_VALUES[2:5],
        ("bias", "each group adds its own bias", {"spec": _experts(ExpertSpec(w13_bias=True)), "dtype": "fp32"}),
    ],
    "act_and_mul": [
        *_ACTIVATIONS,
        *_PROBES,
        ("large-values", "exp overflows and a product exceeds fp16", {"stratum": "outlier", "dtype": "fp32"}),
        ("large-values-bf16", "a product exceeds fp16 inside bf16", {"stratum": "outlier"}),
    ],
    "fused_experts": [
        *_LOADED,
        *_MAPPED,
        *_LARGE,
        *_VALUES,
        *_ACTIVATIONS,
        *_EXPERT_PROBES,
        ("biases", "the second bias is weighted too", {"spec": _experts(ExpertSpec(w13_bias=True, w2_bias=True))}),
        (
            "weight-on-input",
            "Llama-4 multiplies the input, not the output",
            {"spec": _experts(ExpertSpec(weight_on_input=True), 1), "dtype": "fp32"},
        ),
        ("many-slots", "eight experts per token", {"spec": _experts(ExpertSpec(), 8), "num_experts": 32}),
    ],
    "batched_experts": [_LOADED[0], _LOADED[3], _VALUES[0], _ACTIVATIONS[2]],
    "expert_outputs": [*_LOADED[:1], *_LOADED[3:], *_MAPPED[:2], *_VALUES[:2], *_ACTIVATIONS[2:3]],
    "moe_layer": [
        *ROUTING[2:4],
        *(row for row in ROUTING if row[0] == "grouped-negative"),
        *_LAYERS,
        *_WHOLE_LAYERS,
        *_LAYER_PROBES,
        *_VALUES[2:],
        ("ties", "exact ties", {"load": "ties", "num_experts": 32}),
    ],
    "expert_parallel_moe": RANKS,
}
