"""Real MoE layers as data: sizes and semantics of published models."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .cases import Case
from .errors import check_known
from .spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec, SharedExperts


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model's MoE layer. shared_intermediate_size: of all shared experts together, 0 for none."""

    num_experts: int
    hidden_size: int
    intermediate_size: int
    spec: MoESpec
    shared_intermediate_size: int = 0


def _model(
    E: int,
    H: int,
    I: int,  # noqa: E741  # the field's letter for the intermediate size
    routing: RoutingSpec,
    *,
    experts: ExpertSpec | None = None,
    shared: int = 0,
    gated_shared: bool = False,
) -> Model:
    kind: SharedExperts = "none" if not shared else "gated" if gated_shared else "ungated"
    spec = MoESpec(routing=routing, experts=experts or ExpertSpec(), shared_experts=kind)
    return Model(num_experts=E, hidden_size=H, intermediate_size=I, spec=spec, shared_intermediate_size=shared)


def _softmax(top_k: int, *, renormalize: bool) -> RoutingSpec:
    return RoutingSpec(top_k=top_k, renormalize=renormalize)


def _noaux(top_k: int, factor: float, *, groups: int = 1, topk_groups: int = 1) -> RoutingSpec:
    """DeepSeek-V3's routing: sigmoid, correction bias for the choice, groups by the sum of their best two."""
    return RoutingSpec(
        top_k=top_k,
        scoring="sigmoid",
        correction_bias="select",
        num_expert_groups=groups,
        topk_groups=topk_groups,
        group_score="top2_sum" if groups > 1 else "max",
        renormalize=True,
        renorm_eps=1e-20,
        renorm_eps_rule="add",
        routed_scaling_factor=factor,
    )


_GPT_OSS = RoutingSpec(top_k=4, softmax_over_selected=True)

# Sizes and routing from each model's published configuration (config.json of the named checkpoint).
MODELS: dict[str, Model] = {
    "mixtral-8x7b": _model(8, 4096, 14336, _softmax(2, renormalize=True)),
    "mixtral-8x22b": _model(8, 6144, 16384, _softmax(2, renormalize=True)),
    "qwen1.5-moe-a2.7b": _model(60, 2048, 1408, _softmax(4, renormalize=False), shared=5632, gated_shared=True),
    "qwen2-57b-a14b": _model(64, 3584, 2560, _softmax(8, renormalize=False), shared=20480, gated_shared=True),
    "qwen3-30b-a3b": _model(128, 2048, 768, _softmax(8, renormalize=True)),
    "qwen3-235b-a22b": _model(128, 4096, 1536, _softmax(8, renormalize=True)),
    "qwen3-next-80b": _model(512, 2048, 512, _softmax(10, renormalize=True), shared=512, gated_shared=True),
    "deepseek-v2-lite": _model(64, 2048, 1408, _softmax(6, renormalize=False), shared=2816),
    "deepseek-v2": _model(
        160,
        5120,
        1536,
        RoutingSpec(top_k=6, num_expert_groups=8, topk_groups=3, group_mask="zero", routed_scaling_factor=16.0),
        shared=3072,
    ),
    "deepseek-v3": _model(256, 7168, 2048, _noaux(8, 2.5, groups=8, topk_groups=4), shared=2048),
    "kimi-k2": _model(384, 7168, 2048, _noaux(8, 2.827), shared=2048),
    "glm-4.5": _model(160, 5120, 1536, _noaux(8, 2.5), shared=1536),
    "glm-4.5-air": _model(128, 4096, 1408, _noaux(8, 1.0), shared=1408),
    "ling-mini-2.0": _model(256, 2048, 512, _noaux(8, 2.5, groups=8, topk_groups=4), shared=512),
    "minimax-m2": _model(
        256,
        3072,
        1536,
        RoutingSpec(top_k=8, scoring="sigmoid", correction_bias="select", renormalize=True),
    ),
    "llama-4-scout": _model(
        16, 5120, 8192, RoutingSpec(top_k=1, scoring="sigmoid"), experts=ExpertSpec(weight_on_input=True), shared=8192
    ),
    "grok-1": _model(8, 6144, 32768, RoutingSpec(top_k=2, softcap=30.0), experts=ExpertSpec(activation="gelu_tanh")),
    "gpt-oss-20b": _model(32, 2880, 2880, _GPT_OSS, experts=SWIGLUOAI),
    "gpt-oss-120b": _model(128, 2880, 2880, _GPT_OSS, experts=SWIGLUOAI),
    "olmoe-1b-7b": _model(64, 2048, 1024, _softmax(8, renormalize=False)),
    "phi-3.5-moe": _model(16, 4096, 6400, RoutingSpec(top_k=2, selection="sparsemixer")),
    "jamba-v0.1": _model(16, 4096, 14336, _softmax(2, renormalize=False)),
    "dbrx": _model(16, 6144, 10752, _softmax(4, renormalize=True)),
    "granite-3-1b": _model(32, 1024, 512, RoutingSpec(top_k=8, softmax_over_selected=True)),
    "granite-3-3b": _model(40, 1536, 512, RoutingSpec(top_k=8, softmax_over_selected=True)),
    "ernie-4.5-21b": _model(
        64,
        2560,
        1536,
        RoutingSpec(top_k=6, correction_bias="select", renormalize=True, renorm_eps=1e-12, renorm_eps_rule="clamp_min"),
        shared=3072,
    ),
    "deepseek-v4-flash": _model(
        256,
        4096,
        2048,
        replace(_noaux(6, 1.5), scoring="sqrt_softplus"),
        experts=ExpertSpec(swiglu_limit=10.0),
        shared=2048,
    ),
    "nemotron-3-nano": _model(
        128, 2688, 1856, _noaux(6, 2.5), experts=ExpertSpec(activation="relu2", gated=False), shared=3712
    ),
    "gemma-4-26b": _model(
        128,
        2816,
        704,
        RoutingSpec(top_k=8, renormalize=True, per_expert_scale=True),
        experts=ExpertSpec(activation="gelu_tanh"),
    ),
}


MANY_EXPERTS = 64  # above, a scaled layer is narrower: its weights are what a check spends its time on


def model_case(name: str, op: str, *, num_tokens: int, dtype: str, full_size: bool = False, seed: int = 0) -> Case:
    """A model's layer as a case; scaled down it keeps E, top_k, groups, shared experts, factors and ragged tails.

    Raises UsageError for an unknown model, offering the near name.
    """
    check_known("model", name, MODELS)
    model = MODELS[name]
    hidden, intermediate, shared = model.hidden_size, model.intermediate_size, model.shared_intermediate_size
    if not full_size:
        hidden = scaled(hidden, 256 if model.num_experts <= MANY_EXPERTS else 128)
        intermediate, shared = scaled(intermediate, 128), scaled(shared, 128) if shared else 0
    reads_layer = op == "moe_layer"
    spec = model.spec if reads_layer else replace(model.spec, shared_experts="none")
    return Case(
        op=op,
        spec=spec,
        num_tokens=num_tokens,
        num_experts=model.num_experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        shared_intermediate_size=shared if reads_layer else 0,
        dtype=dtype,
        seed=seed,
        name=name if full_size else f"{name}-scaled",
        reason=f"the layer of {name}" + ("" if full_size else ", hidden and intermediate size scaled down"),
    )


def scaled(size: int, least: int) -> int:
    """A small size with the same remainder modulo 128: 2880 -> 320, 704 -> 192, 4096 -> 256."""
    return least + size % 128
