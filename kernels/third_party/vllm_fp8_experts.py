"""vLLM's fused_experts in Triton with fp8 weights, whose inputs it quantises too."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import torch

import moecheck
from moecheck.numerics import INPUT
from moecheck.quantization import SCHEMES

from ._vllm import (
    CONFIG,
    FUSED_MOE,
    activation,
    require_multiples,
    require_slots,
    require_tokens,
    require_valid_ids,
)

DEEP_GEMM: Any = import_module("vllm.utils.deep_gemm")
BLOCK = 128
LEAST_AMAX = 1.0 / 512.0  # of vLLM's quantiser of whole rows: its least scale is 1 / (448 * 512)
SPECS = tuple(moecheck.MoESpec(routing=moecheck.RoutingSpec(top_k=k, renormalize=True)) for k in (8, 2))


def _numerics(quantizer: moecheck.Quantizer, *, accumulate: str = "fp32-rn") -> moecheck.Numerics:
    return moecheck.Numerics(
        gate_up=INPUT,
        act=INPUT,
        act_times_up=INPUT,
        weighted=INPUT,
        a1_quant=quantizer,
        a2_quant=quantizer,
        accumulate=accumulate,
    )


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="vllm/fp8_block",
    dtypes=("bf16", "fp16"),
    specs=SPECS,
    numerics=_numerics(moecheck.Quantizer(group=BLOCK), accumulate="hopper-fp8-promoted-128"),
    deterministic=True,
    quantizations=(SCHEMES["fp8-block"],),
)
def fp8_block(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Activations in 1 x 128, weights in 128 x 128, float scales (VLLM_USE_DEEP_GEMM_E8M0=0).

    Shapes as in fused_experts, scales [L, N / 128, K / 128] float32.
    """
    _require_scales(powers_of_two=False)
    return _block(hidden_states, w13, w2, topk_weights, topk_ids, w13_scale, w2_scale, expert_map, spec)


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="vllm/fp8_block_ue8m0",
    dtypes=("bf16", "fp16"),
    specs=SPECS,
    numerics=_numerics(moecheck.Quantizer(group=BLOCK, scale="power_of_two"), accumulate="hopper-fp8-promoted-128"),
    deterministic=True,
    quantizations=(SCHEMES["fp8-block"], SCHEMES["fp8-block-ue8m0"]),
)
def fp8_block_ue8m0(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Scales of activations rounded up to powers of two: vLLM's default where DeepGEMM is installed. As fp8_block."""
    _require_scales(powers_of_two=True)
    return _block(hidden_states, w13, w2, topk_weights, topk_ids, w13_scale, w2_scale, expert_map, spec)


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="vllm/fp8_channel",
    dtypes=("bf16", "fp16"),
    specs=SPECS,
    numerics=_numerics(moecheck.Quantizer(eps=LEAST_AMAX), accumulate="hopper-fp8"),
    deterministic=True,
    quantizations=(SCHEMES["fp8-channel"],),
)
def fp8_channel(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """A scale for each token and each output channel. As fp8_block, scales [L, N, 1]."""
    config = CONFIG.fp8_w8a8_moe_quant_config(w1_scale=w13_scale, w2_scale=w2_scale, per_act_token_quant=True)
    return _run(hidden_states, w13, w2, topk_weights, topk_ids, expert_map, spec, config)


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="vllm/fp8_tensor",
    dtypes=("bf16", "fp16"),
    specs=SPECS,
    numerics=_numerics(moecheck.Quantizer(static=True, division="multiply"), accumulate="hopper-fp8"),
    deterministic=True,
    quantizations=(SCHEMES["fp8-tensor-static"],),
)
def fp8_tensor(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    a1_scale: torch.Tensor,
    a2_scale: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """One scale for an expert's matrix and one for all inputs of a GEMM. As fp8_block; a1_scale, a2_scale: [1]."""
    config = CONFIG.fp8_w8a8_moe_quant_config(
        w1_scale=w13_scale.flatten(), w2_scale=w2_scale.flatten(), a1_scale=a1_scale, a2_scale=a2_scale
    )
    return _run(hidden_states, w13, w2, topk_weights, topk_ids, expert_map, spec, config)


def _block(
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    expert_map: torch.Tensor | None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    require_multiples(BLOCK, hidden_size=w13.shape[2], intermediate_size=w2.shape[2])
    config = CONFIG.fp8_w8a8_moe_quant_config(w1_scale=w13_scale, w2_scale=w2_scale, block_shape=[BLOCK, BLOCK])
    return _run(hidden_states, w13, w2, topk_weights, topk_ids, expert_map, spec, config)


def _run(
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    spec: moecheck.ExpertSpec,
    config: Any,
) -> torch.Tensor:
    require_tokens(hidden_states)
    require_valid_ids(topk_ids)
    require_slots(topk_ids, low_sum=False)
    name = activation(spec)
    if name is FUSED_MOE.MoEActivation.SWIGLUOAI or spec.weight_on_input:
        raise moecheck.Unsupported("stores other than those declared here")
    out: torch.Tensor = FUSED_MOE.fused_experts(
        hidden_states.contiguous(),
        w13,
        w2,
        topk_weights,
        topk_ids,
        activation=name,
        global_num_experts=-1 if expert_map is None else len(expert_map),
        expert_map=expert_map,
        quant_config=config,
    )
    return out


def _require_scales(*, powers_of_two: bool) -> None:
    """Ask for a format of scales, which vLLM chooses once in a process; raise Unsupported where it chose otherwise."""
    os.environ["VLLM_USE_DEEP_GEMM_E8M0"] = str(int(powers_of_two))
    if DEEP_GEMM.is_deep_gemm_e8m0_used() is not powers_of_two:
        here = "powers of two" if not powers_of_two else "floats, for DeepGEMM is not installed"
        raise moecheck.Unsupported(f"vLLM's scales of activations are {here} in this process")
