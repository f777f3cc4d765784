"""transformers' expert classes under each of its experts implementations."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import moecheck
from moecheck.numerics import INPUT
from moecheck.spec import SWIGLUOAI

from ._require import any_absent
from ._transformers import Config, activation_name, module, sentinel_ids, set_weight

# The loop over experts: every tensor operation stores in the input's dtype, the output included, expert after expert.
EAGER = moecheck.Numerics(
    gate_up=INPUT,
    act=INPUT,
    act_times_up=INPUT,
    per_expert=INPUT,
    weighted=INPUT,
    combine=INPUT,
    combine_order="expert",
)
# batched_mm and grouped_mm: float32 routing weights make the product float32, and so is its sum over slots.
SLOTS = moecheck.Numerics(gate_up=INPUT, act=INPUT, act_times_up=INPUT, per_expert=INPUT)
# GptOssExperts adds biases and computes its gate by tensor operations of their own, each of which stores.
GPT_OSS_EAGER = replace(EAGER, before_bias=INPUT, sigmoid=INPUT, up=INPUT)
GPT_OSS_SLOTS = replace(SLOTS, before_bias=INPUT, sigmoid=INPUT, up=INPUT)


# GptOssExperts keeps its matrices as [E, in, out].
IN_OUT = moecheck.WeightLayout(transposed=True)
GPT_OSS = (moecheck.MoESpec(routing=moecheck.RoutingSpec(top_k=4), experts=SWIGLUOAI),)
NEMOTRON_H = (
    moecheck.MoESpec(
        routing=moecheck.RoutingSpec(top_k=6), experts=moecheck.ExpertSpec(activation="relu2", gated=False)
    ),
)


@moecheck.kernel("fused_experts", backend="torch", name="transformers/mixtral_eager", numerics=EAGER)
def mixtral_eager(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """MixtralExperts.forward with float32 routing weights, as MixtralTopKRouter gives them."""
    return _gated("eager", hidden_states, w13, w2, topk_weights, topk_ids, spec)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="transformers/qwen3_moe_eager",
    numerics=replace(EAGER, topk_weights=INPUT),
)
def qwen3_moe_eager(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Qwen3MoeExperts.forward with routing weights in the model's dtype, as Qwen3MoeTopKRouter gives them."""
    weights = topk_weights.to(hidden_states.dtype)
    return _gated("eager", hidden_states, w13, w2, weights, topk_ids, spec, model="qwen3_moe", owner="Qwen3MoeExperts")


@moecheck.kernel(
    "fused_experts", backend="torch", name="transformers/mixtral_batched_mm", numerics=SLOTS, deterministic=True
)
def mixtral_batched_mm(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """MixtralExperts under `batched_mm`: one gathered weight matrix per (token, slot). Shapes as in fused_experts."""
    return _gated("batched_mm", hidden_states, w13, w2, topk_weights, topk_ids, spec)


@moecheck.kernel(
    "fused_experts", backend="torch", name="transformers/mixtral_grouped_mm", numerics=SLOTS, deterministic=True
)
def mixtral_grouped_mm(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """MixtralExperts under `grouped_mm`: rows sorted by expert. Shapes as in fused_experts."""
    _check_rows(hidden_states, w13.shape[1], w2.shape[2])
    return _gated("grouped_mm", hidden_states, w13, w2, topk_weights, topk_ids, spec)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="transformers/nemotron_h_eager",
    specs=NEMOTRON_H,
    numerics=moecheck.Numerics(gate_up=INPUT, act=INPUT, act_times_up=INPUT, per_expert=INPUT),
)
def nemotron_h_eager(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """NemotronHExperts.forward: no gate, and the output is summed in the dtype of the routing weights, float32."""
    activation = activation_name(spec, moecheck.ExpertSpec(gated=False))
    experts = _experts("nemotron_h", "NemotronHExperts", "eager", w13, w2, activation)
    set_weight(experts, "up_proj", w13)
    return _run(experts, hidden_states, w2, topk_weights, topk_ids)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="transformers/gpt_oss_eager",
    specs=GPT_OSS,
    numerics=GPT_OSS_EAGER,
    weight_layout=IN_OUT,
)
def gpt_oss_eager(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor,
    w2_bias: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """GptOssExperts.forward: interleaved gate and up, clamped swiglu, biases. w13: [E, H, 2I]. w2: [E, I, H]."""
    return _gpt_oss("eager", hidden_states, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, spec)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="transformers/gpt_oss_batched_mm",
    specs=GPT_OSS,
    numerics=GPT_OSS_SLOTS,
    deterministic=True,
    weight_layout=IN_OUT,
)
def gpt_oss_batched_mm(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor,
    w2_bias: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """GptOssExperts under `batched_mm`. w13: [E, H, 2I]. w2: [E, I, H]."""
    return _gpt_oss("batched_mm", hidden_states, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, spec)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="transformers/gpt_oss_grouped_mm",
    specs=GPT_OSS,
    numerics=GPT_OSS_SLOTS,
    deterministic=True,
    weight_layout=IN_OUT,
)
def gpt_oss_grouped_mm(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor,
    w2_bias: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """GptOssExperts under `grouped_mm`. w13: [E, H, 2I]. w2: [E, I, H]."""
    _check_rows(hidden_states, w13.shape[2], w2.shape[1])
    return _gpt_oss("grouped_mm", hidden_states, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, spec)


def _gated(
    implementation: str,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
    *,
    model: str = "mixtral",
    owner: str = "MixtralExperts",
) -> torch.Tensor:
    experts = _experts(model, owner, implementation, w13, w2, activation_name(spec, moecheck.ExpertSpec()))
    set_weight(experts, "gate_up_proj", w13)
    return _run(experts, hidden_states, w2, topk_weights, topk_ids)


def _gpt_oss(
    implementation: str,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor,
    w2_bias: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    if spec.activation != "silu" or spec.swiglu_limit is None:
        raise moecheck.Unsupported("GptOssExperts implements silu with a limit only")
    activation_name(spec, replace(SWIGLUOAI, swiglu_alpha=spec.swiglu_alpha, swiglu_limit=spec.swiglu_limit))
    config = Config(
        num_experts=len(w13),
        hidden_size=w2.shape[2],
        intermediate_size=w2.shape[1],
        swiglu_alpha=spec.swiglu_alpha,
        swiglu_limit=spec.swiglu_limit,
        _experts_implementation=implementation,
    )
    experts = module("gpt_oss", "GptOssExperts", config)
    set_weight(experts, "gate_up_proj", w13)
    set_weight(experts, "gate_up_proj_bias", w13_bias)
    set_weight(experts, "down_proj_bias", w2_bias)
    return _run(experts, hidden_states, w2, topk_weights, topk_ids)


def _experts(
    model: str, owner: str, implementation: str, w13: torch.Tensor, w2: torch.Tensor, activation: str
) -> nn.Module:
    config = Config(
        num_experts=len(w13),
        hidden_size=w2.shape[1],
        intermediate_size=w2.shape[2],
        hidden_act=activation,
        _experts_implementation=implementation,
    )
    return module(model, owner, config)


def _run(
    experts: nn.Module,
    hidden_states: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
) -> torch.Tensor:
    """Call the module with its own convention for padding: absent experts have the id num_experts and weight 0."""
    padding = topk_ids < 0
    absent = any_absent(padding)
    owner: Any = type(experts)
    config: Any = experts.config
    if absent and not _skips_absent_experts(owner, config._experts_implementation):
        raise moecheck.Unsupported(f"{owner.__name__} does not skip absent experts, topk_ids contains -1")
    set_weight(experts, "down_proj", w2)
    experts._is_expert_parallel = absent  # type: ignore[assignment]  # the library's own plain attribute
    with torch.no_grad():
        out: torch.Tensor = experts(
            hidden_states, sentinel_ids(topk_ids, len(w2)), topk_weights.masked_fill(padding, 0.0)
        )
    return out


@functools.cache
def _skips_absent_experts(owner: type[nn.Module], implementation: str) -> bool:
    """Whether this release's class gives 0 for an absent expert, tried on one token that has no other.

    The loops differ from class to class and from release to release; on a GPU a wrong guess ends the process.
    """
    size = 8  # rows of 32 bytes, which grouped_mm takes
    experts = owner(
        Config(num_experts=1, hidden_size=size, intermediate_size=size, _experts_implementation=implementation)
    )
    for parameter in experts.parameters():
        parameter.data.fill_(1.0)
    experts._is_expert_parallel = True  # type: ignore[assignment]  # the library's own plain attribute
    with torch.no_grad():
        try:
            out = experts(torch.ones(1, size), torch.ones(1, 1, dtype=torch.long), torch.zeros(1, 1))
        except (IndexError, RuntimeError):
            return False
    return bool((out == 0).all())


def _check_rows(hidden_states: torch.Tensor, *widths: int) -> None:
    """Raise Unsupported where torch's grouped_mm, which the library calls without a check, would raise."""
    for size in (hidden_states.shape[1], *widths):
        if size * hidden_states.element_size() % 16:
            raise moecheck.Unsupported(f"grouped_mm needs rows of a multiple of 16 bytes, one has {size} elements")
