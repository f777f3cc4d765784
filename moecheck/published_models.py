"""Real MoE layers as data: the sizes and semantics of published models, and where each number comes from."""

from __future__ import annotations

from dataclasses import replace

from .model_record import Model, Source, assumed, library, read, recalled
from .spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec, SharedExperts

HF = "https://huggingface.co"


def _model(
    E: int,
    H: int,
    I: int,  # noqa: E741  # the field's letter for the intermediate size
    routing: RoutingSpec,
    *sources: Source,
    experts: ExpertSpec | None = None,
    shared: int = 0,
    gated_shared: bool = False,
    shared_spec: ExpertSpec | None = None,
    latent: int = 0,
    sum_factor: float = 1.0,
    note: str = "",
) -> Model:
    kind: SharedExperts = "none" if not shared else "gated" if gated_shared else "ungated"
    spec = MoESpec(
        routing=routing,
        experts=experts or ExpertSpec(),
        shared_experts=kind,
        shared_spec=shared_spec,
        latent_experts=latent > 0,
        sum_factor=sum_factor,
    )
    return Model(
        num_experts=E,
        hidden_size=H,
        intermediate_size=I,
        spec=spec,
        shared_intermediate_size=shared,
        latent_size=latent,
        sources=sources,
        note=note,
    )


def _softmax(top_k: int, *, renormalize: bool) -> RoutingSpec:
    return RoutingSpec(top_k=top_k, renormalize=renormalize)


def _noaux(top_k: int, factor: float, *, groups: int = 1, topk_groups: int = 1, eps: float = 1e-20) -> RoutingSpec:
    """DeepSeek-V3's routing: sigmoid, correction bias for the choice, groups by the sum of their best two."""
    return RoutingSpec(
        top_k=top_k,
        scoring="sigmoid",
        correction_bias="select",
        num_expert_groups=groups,
        topk_groups=topk_groups,
        group_score="top2_sum" if groups > 1 else "max",
        renormalize=True,
        renorm_eps=eps,
        renorm_eps_rule="add",
        routed_scaling_factor=factor,
    )


def _minimax(top_k: int, factor: float = 1.0) -> RoutingSpec:
    """As DeepSeek-V3's without groups and eps; a factor multiplies the routed output."""
    return RoutingSpec(
        top_k=top_k,
        scoring="sigmoid",
        correction_bias="select",
        renormalize=True,
        routed_scaling_factor=factor,
        scaling_placement="topk_weights" if factor == 1.0 else "routed_output",
    )


def _ernie(top_k: int) -> RoutingSpec:
    return RoutingSpec(
        top_k=top_k, correction_bias="select", renormalize=True, renorm_eps=1e-12, renorm_eps_rule="clamp_min"
    )


_OVER_CHOSEN = RoutingSpec(top_k=8, softmax_over_selected=True)  # Granite
_GPT_OSS = replace(_OVER_CHOSEN, top_k=4)
_LLAMA4 = RoutingSpec(top_k=1, scoring="sigmoid", choose_by_logits=True)
_GROK = RoutingSpec(top_k=2, softcap=30.0)
_V4 = replace(_noaux(6, 1.5), scoring="sqrt_softplus")
_V4_HASH = replace(_V4, selection="hash", correction_bias="none")
_DEEPSEEK_V2 = RoutingSpec(top_k=6, num_expert_groups=8, topk_groups=3, group_mask="zero", routed_scaling_factor=16.0)
_LONGCAT = RoutingSpec(top_k=12, correction_bias="select", routed_scaling_factor=6.0, num_zero_experts=256)
_CLAMP_10, _RELU2 = ExpertSpec(swiglu_limit=10.0), ExpertSpec(activation="relu2", gated=False)
_GELU_TANH, _INPUT = ExpertSpec(activation="gelu_tanh"), ExpertSpec(weight_on_input=True)
_OAI_HALVES = ExpertSpec(swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)
_STEP_7, _STEP_16 = (ExpertSpec(swiglu_limit=limit, limit_position="after") for limit in (7.0, 16.0))
_SITU = ExpertSpec(activation="situ", situ_beta=4.0, situ_up_beta=4.0)
_DEEPSEEK_CONFIGS = f"{HF}/deepseek-ai/DeepSeek-V3-Base inference/configs"
_NEMOTRON = f"{HF}/OpenResearcher/OpenResearcher-30B-A3B config.json (of the same layer)"
_STEP_CONFIG = "https://docs.modular.com/api/python/pipelines.architectures.step3p5"
_LING2 = f"{HF}/inclusionAI/Ring-mini-sparse-2.0-exp config.json (of the same layer)"
_V4_PRO = f"{HF}/Avow10/VoidAI inference/config.json (a copy of its 384-expert layer)"

MODELS: dict[str, Model] = {
    "mixtral-8x7b": _model(8, 4096, 14336, _softmax(2, renormalize=True), library("mixtral", "EkHI")),
    "mixtral-8x22b": _model(
        8, 6144, 16384, _softmax(2, renormalize=True), read(f"{HF}/Equall/saul_large_430 config.json", "EkHI")
    ),
    "qwen1.5-moe-a2.7b": _model(
        60,
        2048,
        1408,
        _softmax(4, renormalize=False),
        library("qwen2_moe", "EkHISn"),
        shared=5632,
        gated_shared=True,
    ),
    "qwen2-57b-a14b": _model(
        64,
        3584,
        2560,
        _softmax(8, renormalize=False),
        read(f"{HF}/nm-testing/Qwen2-57B-A14B-Instruct-FP8-KV config.json", "EkHIn"),
        recalled("S"),
        shared=20480,
        gated_shared=True,
    ),
    "qwen3-30b-a3b": _model(128, 2048, 768, _softmax(8, renormalize=True), library("qwen3_moe", "EkHI"), recalled("n")),
    "qwen3-235b-a22b": _model(
        128,
        4096,
        1536,
        _softmax(8, renormalize=True),
        read("https://gitcode.com/Ascend/MindSpeed-RL configs/model/qwen3_235b_a22b.yaml", "EkHIn"),
    ),
    "qwen3-coder-480b": _model(160, 6144, 2560, _softmax(8, renormalize=True), recalled("EkHIn")),
    "qwen3-next-80b": _model(
        512,
        2048,
        512,
        _softmax(10, renormalize=True),
        library("qwen3_next", "EkHISn"),
        shared=512,
        gated_shared=True,
    ),
    "qwen3.5-35b": _model(
        256,
        2048,
        512,
        _softmax(8, renormalize=True),
        library("qwen3_5_moe_text", "EkHIS"),
        shared=512,
        gated_shared=True,
    ),
    "qwen3.5-122b": _model(
        256, 3072, 1024, _softmax(8, renormalize=True), recalled("EkHIS"), shared=1024, gated_shared=True
    ),
    "qwen3.5-397b": _model(
        512, 4096, 1024, _softmax(10, renormalize=True), recalled("EkHIS"), shared=1024, gated_shared=True
    ),
    "deepseek-v2-lite": _model(
        64,
        2048,
        1408,
        _softmax(6, renormalize=False),
        read(f"{_DEEPSEEK_CONFIGS}/config_16B.json", "EkHIS"),
        shared=2816,
    ),
    "deepseek-v2": _model(
        160, 5120, 1536, _DEEPSEEK_V2, read(f"{_DEEPSEEK_CONFIGS}/config_236B.json", "EkHISrG"), shared=3072
    ),
    "deepseek-v3": _model(
        256, 7168, 2048, _noaux(8, 2.5, groups=8, topk_groups=4), library("deepseek_v3", "EkHISrGn"), shared=2048
    ),
    "deepseek-v4-flash": _model(
        256,
        4096,
        2048,
        _V4,
        library("deepseek_v4", "EkHISrnL"),
        experts=_CLAMP_10,
        shared=2048,
        note="layers whose experts the gate chooses",
    ),
    "deepseek-v4-flash-hash": _model(
        256,
        4096,
        2048,
        _V4_HASH,
        library("deepseek_v4", "EkHISrnL"),
        experts=_CLAMP_10,
        shared=2048,
        note="the first layers, whose experts a table chooses by token",
    ),
    "deepseek-v4-pro": _model(
        384,
        7168,
        3072,
        replace(_V4, routed_scaling_factor=2.5),
        read(_V4_PRO, "EkHISrL"),
        experts=_CLAMP_10,
        shared=3072,
        note="the factor is 2.5 in the copy that was read; other accounts say 1.5",
    ),
    "llama-4-scout": _model(16, 5120, 8192, _LLAMA4, library("llama4_text", "EkHIS"), experts=_INPUT, shared=8192),
    "llama-4-maverick": _model(
        128, 5120, 8192, _LLAMA4, library("llama4_text", "kHIS"), recalled("E"), experts=_INPUT, shared=8192
    ),
    "grok-1": _model(
        8, 6144, 32768, _GROK, read(f"{HF}/keyfan/grok-1-hf config.json", "EkHI"), recalled("L"), experts=_GELU_TANH
    ),
    "grok-2": _model(
        8,
        8192,
        16384,
        _GROK,
        read(f"{HF}/jhpristine/grok-2 config.json", "EkHISL"),
        experts=_GELU_TANH,
        shared=32768,
        sum_factor=0.5**0.5,
        note="the dense MLP beside the experts is its shared expert",
    ),
    "gpt-oss-20b": _model(32, 2880, 2880, _GPT_OSS, library("gpt_oss", "kHIL"), recalled("E"), experts=SWIGLUOAI),
    "gpt-oss-120b": _model(128, 2880, 2880, _GPT_OSS, library("gpt_oss", "EkHIL"), experts=SWIGLUOAI),
    "kimi-k2": _model(
        384,
        7168,
        2048,
        _noaux(8, 2.827),
        read("https://docs.nvidia.com/nemo/megatron-bridge bridge.models.kimi.kimi_provider", "EkHISr"),
        shared=2048,
    ),
    "kimi-linear-48b": _model(256, 2304, 1024, _noaux(8, 2.446), library("kimi_linear", "EkHISr"), shared=1024),
    "kimi-k3": _model(
        896,
        7168,
        3072,
        _noaux(16, 2.827),
        read("https://docs.flashinfer.ai/api/moe_ep_kimi_k3.html", "EkIX"),
        read("https://docs.nvidia.com/nemo/automodel kimi_k3.config", "H"),
        assumed("SrL"),
        experts=_SITU,
        shared=3072,
        latent=3584,
        note="its norm between the experts' sum and the way up is left out; the shared expert's width, the factor and "
        "the beta of up are placeholders",
    ),
    "glm-4.5": _model(160, 5120, 1536, _noaux(8, 2.5), recalled("EkHISr"), shared=1536),
    "glm-4.5-air": _model(128, 4096, 1408, _noaux(8, 1.0), library("glm4_moe", "EkHISr"), shared=1408),
    "glm-4.7-flash": _model(64, 2048, 1536, _noaux(4, 1.8), library("glm4_moe_lite", "EkHISr"), shared=1536),
    "glm-5": _model(256, 6144, 2048, _noaux(8, 2.5), library("glm_moe_dsa", "EkHISr"), shared=2048),
    "ling-mini-2.0": _model(
        256, 2048, 512, _noaux(8, 2.5, groups=8, topk_groups=4), read(_LING2, "EkHISrGn"), shared=512
    ),
    "ling-flash-2.0": _model(
        256,
        4096,
        1024,
        _noaux(8, 2.5, groups=8, topk_groups=4),
        read(_LING2, "EkrGn"),
        recalled("HIS"),
        shared=1024,
    ),
    "ling-1t": _model(
        256,
        8192,
        2048,
        _noaux(8, 2.5, groups=8, topk_groups=4),
        read(f"{HF}/yujiepan/ring-tiny-random config.json", "Ekr"),
        recalled("HISG"),
        shared=2048,
    ),
    "ling-lite": _model(
        64,
        2048,
        1408,
        _softmax(6, renormalize=True),
        read(f"{HF}/inclusionAI/Ling-Coder-lite config.json", "EkHISn"),
        shared=2816,
    ),
    "minimax-text-01": _model(
        32,
        6144,
        9216,
        _softmax(2, renormalize=True),
        read(f"{HF}/MiniMaxAI/MiniMax-Text-01 config.json", "kHI"),
        recalled("E"),
    ),
    "minimax-m2": _model(256, 3072, 1536, _minimax(8), library("minimax_m2", "EkHI")),
    "minimax-m3": _model(
        128,
        6144,
        3072,
        _minimax(4, 2.0),
        library("minimax_m3_vl_text", "EkHISrL"),
        experts=_OAI_HALVES,
        shared=3072,
    ),
    "olmoe-1b-7b": _model(64, 2048, 1024, _softmax(8, renormalize=False), library("olmoe", "EkHn"), recalled("I")),
    "phi-3.5-moe": _model(16, 4096, 6400, RoutingSpec(top_k=2, selection="sparsemixer"), library("phimoe", "EkHI")),
    "jamba-v0.1": _model(16, 4096, 14336, _softmax(2, renormalize=False), library("jamba", "EkHI")),
    "jamba-1.5-large": _model(16, 8192, 24576, _softmax(2, renormalize=False), library("jamba", "Ek"), recalled("HI")),
    "dbrx": _model(
        16,
        6144,
        10752,
        _softmax(4, renormalize=True),
        read(f"{HF}/amd/dbrx-instruct-FP8-KV config.json", "EkHI"),
        note="its norm is the 1-norm, the default of the library",
    ),
    "granite-3-1b": _model(32, 1024, 512, _OVER_CHOSEN, recalled("EkHI")),
    "granite-3-3b": _model(40, 1536, 512, _OVER_CHOSEN, recalled("EkHI")),
    "hunyuan-a13b": _model(64, 4096, 3072, _softmax(8, renormalize=True), recalled("EkHIS"), shared=3072),
    "ernie-4.5-21b": _model(64, 2560, 1536, _ernie(6), library("ernie4_5_moe", "EkHIS"), shared=3072),
    "ernie-4.5-300b": _model(64, 8192, 3584, _ernie(8), recalled("EkHI")),
    "dots.llm1": _model(
        128,
        4096,
        1408,
        _noaux(6, 2.5),
        read(f"{HF}/rednote-hilab/dots.llm1.base config.json", "EkHISrn"),
        shared=2816,
    ),
    "longcat-flash": _model(
        768,
        6144,
        2048,
        _LONGCAT,
        library("longcat_flash", "EkHIr"),
        note="512 experts and 256 that hand the token on",
    ),
    "step-3.5-flash": _model(
        288,
        4096,
        1280,
        _minimax(8, 3.0),
        read(_STEP_CONFIG, "EkHISr"),
        shared=1280,
        note="all layers but the last two, which clamp",
    ),
    "step-3.5-flash-last": _model(
        288,
        4096,
        1280,
        _minimax(8, 3.0),
        read(_STEP_CONFIG, "EkHISr"),
        recalled("L"),
        experts=_STEP_7,
        shared=1280,
        shared_spec=_STEP_16,
        note="layers 43 and 44, which clamp behind the activation",
    ),
    "nemotron-3-nano": _model(
        128, 2688, 1856, _noaux(6, 2.5), read(_NEMOTRON, "EkHISn"), recalled("r"), experts=_RELU2, shared=3712
    ),
    "nemotron-3-super": _model(
        512,
        4096,
        2688,
        _noaux(22, 5.0),
        read("https://docs.nvidia.com/nemotron/latest/usage-cookbook/Nemotron-3-Super", "HX"),
        recalled("EkISr"),
        experts=_RELU2,
        shared=5376,
        latent=1024,
    ),
    "gemma-4-26b": _model(
        128,
        2816,
        704,
        RoutingSpec(top_k=8, renormalize=True, per_expert_scale=True),
        read("https://ollama.com/library/gemma4:26b-a4b-it-q4_K_M metadata", "EkHI"),
        experts=_GELU_TANH,
        note="the router's norm lies before the logits; the dense MLP beside the experts has norms of its own and is "
        "left out",
    ),
    "mimo-v2-flash": _model(256, 4096, 2048, _noaux(8, 1.0), library("mimo_v2_flash", "EkHIrn")),
    "lfm2-8b-a1b": _model(32, 2048, 1792, _noaux(4, 1.0, eps=1e-6), library("lfm2_moe", "EkHIrn")),
    "mistral-large-3": _model(128, 7168, 4096, _noaux(4, 1.0), recalled("EkHI"), assumed("Sr"), shared=4096),
}
# Other names of the same layers.
MODELS |= {
    "deepseek-r1": MODELS["deepseek-v3"],
    "step-3.7-flash": MODELS["step-3.5-flash"],
    "step-3.7-flash-last": MODELS["step-3.5-flash-last"],
}
