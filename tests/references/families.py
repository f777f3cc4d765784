"""The MoE families of transformers: how to build each one's router, and the RoutingSpec that describes it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from moecheck.formats import Float64
from moecheck.spec import RoutingSpec

NUM_EXPERTS, TOP_K, FACTOR = 16, 4, 2.5
Routed = tuple[torch.Tensor, torch.Tensor]
Module = Any  # a torch module, whose attributes have no static types
Router = Callable[[Module, torch.Tensor, torch.Tensor], Routed]

# Names under which configurations keep the same thing; each family's configuration has some of them.
SIZES = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), NUM_EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"), TOP_K),
    **dict.fromkeys(("routed_scaling_factor", "route_scale", "router_scaling_factor"), FACTOR),
    **dict.fromkeys(("moe_router_scaling_factor",), FACTOR),
    "n_group": 4,
    "topk_group": 2,
}
SOFTMAX = RoutingSpec(top_k=TOP_K)
MIXTRAL = replace(SOFTMAX, renormalize=True)
GRANITE = replace(SOFTMAX, softmax_over_selected=True)
MINIMAX_M2 = replace(MIXTRAL, scoring="sigmoid", correction_bias="select")
STEP = replace(MINIMAX_M2, routed_scaling_factor=FACTOR, scaling_placement="routed_output")
UNGROUPED = replace(MINIMAX_M2, renorm_eps=1e-20, renorm_eps_rule="add", routed_scaling_factor=FACTOR)
DEEPSEEK_V3 = replace(UNGROUPED, num_expert_groups=4, topk_groups=2, group_score="top2_sum")
DEEPSEEK_V2 = replace(SOFTMAX, num_expert_groups=4, topk_groups=2, group_mask="zero", routed_scaling_factor=FACTOR)


def choice_bias() -> Float64:
    """A correction bias that is neither constant nor monotone, with entries below -1 and above 1: [num_experts]."""
    bias: Float64 = 1.5 * np.sin(np.arange(NUM_EXPERTS) ** 2 + 1.0)
    return bias


def plain(router: Module, hidden: torch.Tensor, bias: torch.Tensor) -> Routed:
    """Most routers return (logits, weights, ids); the bias is a buffer of theirs."""
    for name, tensor in (*router.named_buffers(), *router.named_parameters()):
        if name.endswith("e_score_correction_bias"):
            tensor.data.copy_(bias.reshape(tensor.shape))
    _, weights, ids = router(hidden)
    return weights, ids


def bias_passed(router: Module, hidden: torch.Tensor, bias: torch.Tensor) -> Routed:
    """The bias belongs to the block and is passed in each call."""
    _, weights, ids = router(hidden, bias)
    return weights, ids


def batched(router: Module, hidden: torch.Tensor, bias: torch.Tensor) -> Routed:
    """As `bias_passed`, for a router that wants [batch, tokens, hidden]."""
    return bias_passed(router, hidden[None], bias)


def dense(router: Module, hidden: torch.Tensor, bias: torch.Tensor) -> Routed:
    """Llama-4 returns a weight for every expert, 0 for those not chosen."""
    weights, _ = router(hidden)
    chosen = torch.topk(weights, router.top_k)
    return chosen.values, chosen.indices


def dbrx(block: Module, hidden: torch.Tensor, bias: torch.Tensor) -> Routed:
    """DBRX routes in the block."""
    weights, ids = block.route_tokens_to_experts(block.router(hidden))
    return weights, ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where a family's router is, and what it computes.

    folder: models/<folder> of transformers. config, router: class names. settings: configuration values besides SIZES.
    """

    folder: str
    config: str
    router: str
    routing: RoutingSpec
    settings: Mapping[str, object] = field(default_factory=dict)
    route: Router = plain

    def build_config(self, hidden_size: int, **more: object) -> object:
        """A small configuration object of the family's own class."""
        config = getattr(self._module("configuration"), self.config)()
        target = config.ffn_config if self.folder == "dbrx" else config
        for name, value in {**SIZES, "hidden_size": hidden_size, **self.settings, **more}.items():
            if hasattr(target, name):
                setattr(target, name, value)
        return config

    def build(self, name: str, config: object, *more: object) -> Module:
        """The class `name` of the family's modelling code, built from `config`, in evaluation mode."""
        return getattr(self._module("modeling"), name)(config, *more).eval().requires_grad_(False)

    def _module(self, kind: str) -> object:
        return importlib.import_module(f"transformers.models.{self.folder}.{kind}_{self.folder}")


def _family(
    folder: str, config: str, router: str, routing: RoutingSpec, route: Router = plain, **settings: object
) -> Family:
    return Family(folder=folder, config=config, router=router, routing=routing, settings=settings, route=route)


FAMILIES = {
    "Mixtral": _family("mixtral", "MixtralConfig", "MixtralTopKRouter", MIXTRAL),
    "MiniMax-Text-01": _family("minimax", "MiniMaxConfig", "MiniMaxTopKRouter", MIXTRAL),
    "Qwen2-MoE": _family("qwen2_moe", "Qwen2MoeConfig", "Qwen2MoeTopKRouter", SOFTMAX),
    "Qwen2-MoE, norm_topk_prob": _family(
        "qwen2_moe", "Qwen2MoeConfig", "Qwen2MoeTopKRouter", MIXTRAL, norm_topk_prob=True
    ),
    "Qwen3-MoE": _family("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeTopKRouter", MIXTRAL, norm_topk_prob=True),
    "Qwen3-MoE, not normalized": _family(
        "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeTopKRouter", SOFTMAX, norm_topk_prob=False
    ),
    "Qwen3-Next": _family("qwen3_next", "Qwen3NextConfig", "Qwen3NextTopKRouter", MIXTRAL, norm_topk_prob=True),
    "Qwen3.5-MoE": _family("qwen3_5_moe", "Qwen3_5MoeTextConfig", "Qwen3_5MoeTopKRouter", MIXTRAL),
    "OLMoE": _family("olmoe", "OlmoeConfig", "OlmoeTopKRouter", SOFTMAX),
    "FlexOlmo": _family("flex_olmo", "FlexOlmoConfig", "FlexOlmoTopKRouter", SOFTMAX),
    "Jamba": _family("jamba", "JambaConfig", "JambaTopKRouter", SOFTMAX),
    "Hunyuan-A13B": _family("hunyuan_v1_moe", "HunYuanMoEV1Config", "HunYuanMoEV1Gate", MIXTRAL),
    "DBRX": _family("dbrx", "DbrxConfig", "DbrxFFN", MIXTRAL, dbrx, moe_normalize_expert_weights=1.0),
    "DBRX, 2-norm": _family(
        "dbrx", "DbrxConfig", "DbrxFFN", replace(MIXTRAL, renorm_norm=2.0), dbrx, moe_normalize_expert_weights=2.0
    ),
    "DBRX, not normalized": _family("dbrx", "DbrxConfig", "DbrxFFN", SOFTMAX, dbrx, moe_normalize_expert_weights=None),
    "Granite MoE": _family("granitemoe", "GraniteMoeConfig", "GraniteMoeTopKRouter", GRANITE),
    "Granite MoE hybrid": _family("granitemoehybrid", "GraniteMoeHybridConfig", "GraniteMoeHybridTopKRouter", GRANITE),
    "GPT-OSS": _family("gpt_oss", "GptOssConfig", "GptOssTopKRouter", GRANITE),
    "Llama-4": _family(
        "llama4",
        "Llama4TextConfig",
        "Llama4Router",
        RoutingSpec(top_k=1, scoring="sigmoid", choose_by_logits=True),
        dense,
        num_experts_per_tok=1,
    ),
    "Cohere2-MoE": _family("cohere2_moe", "Cohere2MoeConfig", "Cohere2MoeTopKRouter", GRANITE),
    "Cohere2-MoE, sigmoid": _family(
        "cohere2_moe",
        "Cohere2MoeConfig",
        "Cohere2MoeTopKRouter",
        replace(MIXTRAL, scoring="sigmoid", choose_by_logits=True),
        expert_selection_fn="sigmoid",
    ),
    "Gemma-4": _family("gemma4", "Gemma4TextConfig", "Gemma4TextRouter", replace(MIXTRAL, per_expert_scale=True)),
    "Phi-3.5-MoE": _family(
        "phimoe",
        "PhimoeConfig",
        "PhimoeTopKRouter",
        RoutingSpec(top_k=2, selection="sparsemixer", sparsemixer_epsilon=0.1),
        num_experts_per_tok=2,
        router_jitter_noise=0.1,
    ),
    "DeepSeek-V2-Lite": _family(
        "deepseek_v2",
        "DeepseekV2Config",
        "DeepseekV2TopkRouter",
        replace(SOFTMAX, routed_scaling_factor=FACTOR),
        topk_method="greedy",
    ),
    "DeepSeek-V2": _family(
        "deepseek_v2", "DeepseekV2Config", "DeepseekV2TopkRouter", DEEPSEEK_V2, topk_method="group_limited_greedy"
    ),
    "Mistral-4": _family(
        "mistral4",
        "Mistral4Config",
        "Mistral4TopkRouter",
        replace(DEEPSEEK_V2, group_score="top2_sum", renormalize=True, renorm_eps=1e-20, renorm_eps_rule="add"),
    ),
    "DeepSeek-V3": _family("deepseek_v3", "DeepseekV3Config", "DeepseekV3TopkRouter", DEEPSEEK_V3),
    "DeepSeek-V3, not normalized": _family(
        "deepseek_v3",
        "DeepseekV3Config",
        "DeepseekV3TopkRouter",
        replace(DEEPSEEK_V3, renormalize=False),
        norm_topk_prob=False,
    ),
    "DeepSeek-V4": _family(
        "deepseek_v4", "DeepseekV4Config", "DeepseekV4TopKRouter", replace(UNGROUPED, scoring="sqrt_softplus")
    ),
    "GLM-4 MoE": _family("glm4_moe", "Glm4MoeConfig", "Glm4MoeTopkRouter", DEEPSEEK_V3),
    "GLM-4 MoE lite": _family("glm4_moe_lite", "Glm4MoeLiteConfig", "Glm4MoeLiteTopkRouter", DEEPSEEK_V3),
    "GLM-5": _family("glm_moe_dsa", "GlmMoeDsaConfig", "GlmMoeDsaTopkRouter", DEEPSEEK_V3),
    "Ling (bailing hybrid)": _family("bailing_hybrid", "BailingHybridConfig", "BailingHybridTopkRouter", DEEPSEEK_V3),
    "Kimi-Linear": _family("kimi_linear", "KimiLinearConfig", "KimiLinearTopkRouter", DEEPSEEK_V3),
    "dots1": _family("dots1", "Dots1Config", "Dots1TopkRouter", DEEPSEEK_V3, norm_topk_prob=True),
    "Nemotron-H": _family("nemotron_h", "NemotronHConfig", "NemotronHTopkRouter", DEEPSEEK_V3),
    "EXAONE-MoE": _family("exaone_moe", "ExaoneMoeConfig", "ExaoneMoeTopkRouter", DEEPSEEK_V3),
    "Solar-Open": _family("solar_open", "SolarOpenConfig", "SolarOpenTopkRouter", DEEPSEEK_V3),
    "MiMo-V2-Flash": _family(
        "mimo_v2_flash",
        "MiMoV2FlashConfig",
        "MiMoV2FlashTopkRouter",
        replace(UNGROUPED, num_expert_groups=1, topk_groups=1),
        n_group=1,
        topk_group=1,
    ),
    "AFMoE": _family("afmoe", "AfmoeConfig", "AfmoeTokenChoiceRouter", UNGROUPED, batched),
    "Hunyuan-V3": _family("hy_v3", "HYV3Config", "HYV3TopKRouter", UNGROUPED, bias_passed),
    "MiniMax-M2": _family("minimax_m2", "MiniMaxM2Config", "MiniMaxM2TopKRouter", MINIMAX_M2, bias_passed),
    "MiniMax-M3": _family("minimax_m3_vl", "MiniMaxM3VLTextConfig", "MiniMaxM3VLTopKRouter", STEP),
    "Step-3.7": _family("step3p7", "Step3p7TextConfig", "Step3p7TopKRouter", STEP),
    "LFM2-MoE": _family(
        "lfm2_moe",
        "Lfm2MoeConfig",
        "Lfm2MoeTopKRouter",
        replace(UNGROUPED, renorm_eps=1e-6),
        bias_passed,
        use_expert_bias=True,
        norm_topk_prob=True,
    ),
    "ERNIE-4.5": _family(
        "ernie4_5_moe",
        "Ernie4_5_MoeConfig",
        "Ernie4_5_MoeTopKRouter",
        replace(MIXTRAL, correction_bias="select", renorm_eps=0.5, renorm_eps_rule="clamp_min"),
        moe_norm_min=0.5,
    ),
    "LongCat-Flash": _family(
        "longcat_flash",
        "LongcatFlashConfig",
        "LongcatFlashTopkRouter",
        replace(SOFTMAX, correction_bias="select", routed_scaling_factor=FACTOR, num_zero_experts=4),
        n_routed_experts=NUM_EXPERTS - 4,
        num_local_experts=NUM_EXPERTS - 4,
        zero_expert_num=4,
    ),
    "Kolibri-1": _family(
        "kolibri1",
        "Kolibri1Config",
        "Kolibri1TopKRouter",
        replace(MINIMAX_M2, choose_by_logits=True),
        norm_topk_prob=True,
    ),
    "Laguna": _family(
        "laguna",
        "LagunaConfig",
        "LagunaTopKRouter",
        replace(STEP, softcap=3.0),
        moe_router_logit_softcapping=3.0,
        moe_routed_scaling_factor=FACTOR,
    ),
    "Flint": _family(
        "flint", "FlintConfig", "FlintTopKRouter", replace(MIXTRAL, scoring="sigmoid"), norm_topk_prob=True
    ),
}
