"""The named cases of experts that lie on several ranks, as data; few shapes, since each is compiled for in seconds."""

from __future__ import annotations

from typing import Any

from .cases import Case
from .curated_routing import Row
from .quantization import SCHEMES, Quantization, scheme_name
from .spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec


def _spec(experts: ExpertSpec | None = None, **routing: Any) -> MoESpec:
    return MoESpec(routing=RoutingSpec(**{"top_k": 2, "renormalize": True, **routing}), experts=experts or ExpertSpec())


SIZES: dict[str, object] = {"num_tokens": 24, "num_experts": 8, "hidden_size": 64, "intermediate_size": 48}
_ROWS: list[Row] = [
    ("plain-bf16", "the ordinary call: four experts on each of two ranks", {"num_ranks": 2}),
    ("four-ranks", "two experts on each of four ranks; fp32 leaves rounding nowhere to hide in",
     {"num_ranks": 4, "dtype": "fp32"}),
    ("one-rank", "without other ranks nothing is sent", {"num_ranks": 1, "dtype": "fp32"}),
    ("one-expert-each", "a rank that has one expert", {"num_ranks": 4, "num_experts": 4, "dtype": "fp32"}),
    ("four-experts-each", "more local experts than buffers for two", {"num_ranks": 4, "num_experts": 16}),
    ("uneven-tokens", "ranks have different numbers of tokens, one has none",
     {"num_ranks": 4, "uneven_ranks": True, "dtype": "fp32"}),
    ("uneven-tokens-two-ranks", "one of two ranks has all tokens", {"num_ranks": 2, "uneven_ranks": True}),
    ("all-to-one-rank", "every token goes to the last rank's experts: its buffers are full, the others' are empty",
     {"num_ranks": 4, "load": "one_rank", "dtype": "fp32"}),
    ("no-tokens", "no rank has any token", {"num_ranks": 2, "num_tokens": 0, "dtype": "fp32"}),
    ("one-token", "decoding: three of four ranks have no token", {"num_ranks": 4, "num_tokens": 1, "dtype": "fp32"}),
    ("ragged", "no size is a multiple of a tile or of the ranks",
     {"num_ranks": 2, "num_tokens": 19, "hidden_size": 90, "intermediate_size": 44}),
    ("every-expert", "each token goes to every expert of every rank",
     {"num_ranks": 2, "num_experts": 4, "spec": _spec(top_k=4), "dtype": "fp32"}),
    ("not-renormalised", "weights that do not sum to 1", {"num_ranks": 2, "spec": _spec(renormalize=False)}),
    ("sigmoid", "scores that are no softmax, a bias that selects, a factor",
     {"num_ranks": 4, "spec": _spec(scoring="sigmoid", correction_bias="select", routed_scaling_factor=2.5),
      "dtype": "fp32"}),
    ("grouped", "experts are chosen among the best groups, which lie on different ranks",
     {"num_ranks": 2, "spec": _spec(num_expert_groups=4, topk_groups=2), "dtype": "fp32"}),
    ("softcap-gelu", "Grok-2: a soft cap, softmax over all, gelu",
     {"num_ranks": 2, "spec": _spec(ExpertSpec(activation="gelu"), softcap=30.0, renormalize=False)}),
    ("gelu-tanh", "the other gelu",
     {"num_ranks": 2, "spec": _spec(ExpertSpec(activation="gelu_tanh")), "dtype": "fp32"}),
    ("swigluoai-biases", "GPT-OSS: clamps, biases, interleaved gate and up",
     {"num_ranks": 4, "spec": _spec(SWIGLUOAI, softmax_over_selected=True, renormalize=False), "dtype": "fp32"}),
    ("round-robin", "every second expert lies on the second rank", {"num_ranks": 2, "map_style": "round_robin"}),
    ("shuffled-placement", "experts lie anywhere, as after rebalancing",
     {"num_ranks": 4, "map_style": "shuffled", "uneven_ranks": True, "dtype": "fp32"}),
    ("outliers", "a few channels are 50 times larger", {"num_ranks": 2, "stratum": "outlier"}),
    ("fp16", "fp16 has a narrow range", {"num_ranks": 2, "dtype": "fp16"}),
    ("strided", "rows lie further apart than their width", {"num_ranks": 2, "layout": "strided"}),
]  # fmt: skip


def quantised_over_ranks(quantizations: tuple[Quantization, ...], *, dtypes: tuple[str, ...], seed: int) -> list[Case]:
    """One case of each scheme, on two and on four ranks by turns; in the first of `dtypes` that is bf16 or any."""
    dtype = "bf16" if "bf16" in dtypes else dtypes[0]
    routing = RoutingSpec(top_k=2, renormalize=True)
    sizes: dict[str, Any] = {**SIZES, "num_experts": 4, "hidden_size": 80}
    return [
        Case(
            op="expert_parallel_moe",
            spec=MoESpec(routing=routing, experts=ExpertSpec(quantization=quantization)),
            num_ranks=2 + 2 * (number % 2),
            dtype=dtype,
            seed=seed,
            name=scheme_name(quantization)
            if quantization in SCHEMES.values()
            else f"{quantization.weights}-sub-channel",
            reason=f"experts of {quantization.words()} on several ranks",
            **sizes,
        )
        for number, quantization in enumerate(quantizations)
    ]


# Those on which kernels with DMAs of their own are tried on every schedule.
RESCHEDULED = ("plain-bf16", "four-ranks", "four-experts-each")
RANKS: list[Row] = [(name, reason, {**SIZES, **changes}) for name, reason, changes in _ROWS]
