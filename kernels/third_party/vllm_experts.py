"""vLLM's fused_experts in Triton with plain weights."""

from __future__ import annotations

from dataclasses import replace

import torch

import moecheck
from moecheck.numerics import INPUT
from moecheck.spec import SWIGLUOAI

from ._vllm import CONFIG, FUSED_MOE, activation, require_slots, require_tokens, require_valid_ids

# Each kernel stores the input's format; act(gate) is stored on its own; the weight multiplies the accumulator.
FP32_SUM = moecheck.Numerics(gate_up=INPUT, act=INPUT, act_times_up=INPUT, weighted=INPUT)
LOW_SUM = replace(FP32_SUM, combine=INPUT, combine_order="slot")
ON_INPUT = replace(FP32_SUM, weighted="fp32", per_expert=INPUT)
DTYPES = ("bf16", "fp16")


def _specs(*top_k: int, experts: moecheck.ExpertSpec | None = None) -> tuple[moecheck.MoESpec, ...]:
    return tuple(
        moecheck.MoESpec(
            routing=moecheck.RoutingSpec(top_k=k, renormalize=True), experts=experts or moecheck.ExpertSpec()
        )
        for k in top_k
    )


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="vllm/fused_experts",
    dtypes=DTYPES,
    specs=_specs(8, 2),
    numerics=FP32_SUM,
    deterministic=True,
)
def fused_experts(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Two slots, or more than four: these are added in fp32. Shapes as in fused_experts."""
    require_slots(topk_ids, low_sum=False)
    return _run(hidden_states, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, expert_map, spec)


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="vllm/fused_experts_low_sum",
    dtypes=DTYPES,
    specs=(*_specs(4), *_specs(3, experts=moecheck.ExpertSpec(w13_bias=True, w2_bias=True))),
    numerics=LOW_SUM,
    deterministic=True,
)
def fused_experts_low_sum(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Three or four slots, which are added in the input's format, one after the other. As fused_experts."""
    require_slots(topk_ids, low_sum=True)
    return _run(hidden_states, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, expert_map, spec)


# Its activation keeps everything up to its store in fp32.
@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="vllm/fused_experts_gpt_oss",
    dtypes=DTYPES,
    specs=_specs(4, experts=SWIGLUOAI),
    numerics=replace(LOW_SUM, act="fp32"),
    deterministic=True,
)
def fused_experts_gpt_oss(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Interleaved gate and up, clamped swiglu, biases. As fused_experts_low_sum."""
    require_slots(topk_ids, low_sum=True)
    return _run(hidden_states, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, expert_map, spec, gpt_oss=True)


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="vllm/fused_experts_weight_on_input",
    dtypes=DTYPES,
    specs=_specs(1, experts=moecheck.ExpertSpec(weight_on_input=True)),
    numerics=ON_INPUT,
    deterministic=True,
)
def fused_experts_weight_on_input(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """One slot, whose weight multiplies the first GEMM's accumulator. As fused_experts, without biases."""
    if not spec.weight_on_input:
        raise moecheck.Unsupported("another kernel of this library weights the experts' outputs")
    return _run(hidden_states, w13, w2, topk_weights, topk_ids, None, None, expert_map, spec)


def _run(
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor | None,
    w2_bias: torch.Tensor | None,
    expert_map: torch.Tensor | None,
    spec: moecheck.ExpertSpec,
    *,
    gpt_oss: bool = False,
) -> torch.Tensor:
    """gpt_oss: whether the caller declares the stores of swigluoai, or those of the other activations."""
    require_tokens(hidden_states)
    require_valid_ids(topk_ids)
    if (activation(spec) is FUSED_MOE.MoEActivation.SWIGLUOAI) is not gpt_oss:
        raise moecheck.Unsupported("another kernel of this library declares what this activation stores")
    config = CONFIG.FusedMoEQuantConfig.make(w1_bias=w13_bias, w2_bias=w2_bias)
    out: torch.Tensor = FUSED_MOE.fused_experts(
        hidden_states.contiguous(),
        w13,
        w2,
        topk_weights,
        topk_ids,
        activation=activation(spec),
        apply_router_weight_on_input=spec.weight_on_input,
        global_num_experts=-1 if expert_map is None else len(expert_map),
        expert_map=expert_map,
        quant_config=config,
    )
    return out
