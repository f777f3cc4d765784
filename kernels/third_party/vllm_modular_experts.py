"""vLLM's modular fp8 experts behind its own kernel object: CUTLASS and DeepGEMM."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import torch

import moecheck
from moecheck.numerics import INPUT
from moecheck.quantization import SCHEMES

from ._require import require_fields, require_ids
from ._vllm import CONFIG, FUSED_MOE, LIBRARY, activation, require_multiples, require_tokens

_LAYERS = "vllm.model_executor.layers.fused_moe"
MODULAR: Any = import_module(f"{_LAYERS}.modular_kernel")
PREPARE: Any = import_module(f"{_LAYERS}.prepare_finalize.no_dp_ep")
DEEP_GEMM: Any = import_module("vllm.utils.deep_gemm")
WORKSPACE: Any = import_module("vllm.v1.worker.workspace")
BLOCK = 128
ROW = moecheck.Quantizer(eps=1.0 / 512.0)
POWERS = moecheck.Quantizer(group=BLOCK, scale="power_of_two")


def _numerics(quantizer: moecheck.Quantizer, accumulate: str) -> moecheck.Numerics:
    return moecheck.Numerics(
        gate_up=INPUT,
        act=INPUT,
        act_times_up=INPUT,
        per_expert=INPUT,
        a1_quant=quantizer,
        a2_quant=quantizer,
        accumulate=accumulate,
    )


@moecheck.kernel(
    "fused_experts",
    backend="cuda",
    name="vllm/cutlass_fp8_channel",
    dtypes=("bf16", "fp16"),
    numerics=_numerics(ROW, "hopper-fp8"),
    quantizations=(SCHEMES["fp8-channel"],),
)
def cutlass_fp8_channel(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """A scale for each token and each output channel. Shapes as in fused_experts, scales [L, N, 1] float32."""
    require_ids(topk_ids, "vLLM's CutlassExpertsFp8")
    require_multiples(16, hidden_size=w13.shape[2], intermediate_size=w2.shape[2])
    config = CONFIG.fp8_w8a8_moe_quant_config(
        w1_scale=w13_scale, w2_scale=w2_scale, per_act_token_quant=True, per_out_ch_quant=True
    )
    return _run(FUSED_MOE.CutlassExpertsFp8, config, hidden_states, w13, w2, topk_weights, topk_ids, None, spec)


@moecheck.kernel(
    "fused_experts",
    backend="cuda",
    name="vllm/cutlass_fp8_tensor",
    dtypes=("bf16", "fp16"),
    numerics=_numerics(moecheck.Quantizer(static=True, division="multiply"), "hopper-fp8"),
    quantizations=(SCHEMES["fp8-tensor-static"],),
)
def cutlass_fp8_tensor(
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
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """One scale for an expert's matrix and one for all inputs of a GEMM. As above; a1_scale, a2_scale: [1]."""
    require_ids(topk_ids, "vLLM's CutlassExpertsFp8")
    require_multiples(16, hidden_size=w13.shape[2], intermediate_size=w2.shape[2])
    config = CONFIG.fp8_w8a8_moe_quant_config(
        w1_scale=w13_scale.flatten(), w2_scale=w2_scale.flatten(), a1_scale=a1_scale, a2_scale=a2_scale
    )
    return _run(FUSED_MOE.CutlassExpertsFp8, config, hidden_states, w13, w2, topk_weights, topk_ids, None, spec)


@moecheck.kernel(
    "fused_experts",
    backend="cuda",
    name="vllm/deep_gemm",
    dtypes=("bf16",),
    numerics=_numerics(POWERS, "hopper-fp8-promoted-128"),
    quantizations=(SCHEMES["fp8-block"], SCHEMES["fp8-block-ue8m0"]),
)
def deep_gemm(
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
    """Activations in 1 x 128 with powers of two as scales, weights in 128 x 128, silu. Scales [L, N / 128, K / 128].

    DeepGEMM compiles for each shape of the weights with nvcc.
    """
    require_fields(spec, LIBRARY, activation=("silu",))
    require_multiples(BLOCK, hidden_size=w13.shape[2], intermediate_size=w2.shape[2])
    hidden = w13.shape[2]
    if hidden % min(hidden, 1024):
        raise moecheck.Unsupported(f"vLLM gathers DeepGEMM's rows in parts of 1024 columns, not {hidden}")
    os.environ["VLLM_USE_DEEP_GEMM_E8M0"] = "1"
    if not DEEP_GEMM.is_deep_gemm_e8m0_used():
        raise moecheck.Unsupported("vLLM finds no DeepGEMM")
    config = CONFIG.fp8_w8a8_moe_quant_config(w1_scale=w13_scale, w2_scale=w2_scale, block_shape=[BLOCK, BLOCK])
    return _run(FUSED_MOE.DeepGemmExperts, config, hidden_states, w13, w2, topk_weights, topk_ids, expert_map, spec)


def _run(
    experts: Any,
    config: Any,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """One call of FusedMoEKernel, as a layer without parallelism makes it."""
    name = activation(spec)
    if name is FUSED_MOE.MoEActivation.SWIGLUOAI or spec.weight_on_input:
        raise moecheck.Unsupported("stores other than those declared here")
    require_tokens(hidden_states)
    count = len(w13) if expert_map is None else len(expert_map)
    layer = CONFIG.FusedMoEConfig(
        num_experts=count,
        experts_per_token=topk_ids.shape[1],
        hidden_dim=w13.shape[2],
        intermediate_size_per_partition=w2.shape[2],
        num_local_experts=len(w13),
        num_logical_experts=count,
        activation=name,
        device=hidden_states.device,
        routing_method=CONFIG.RoutingMethodType.Renormalize,
        moe_parallel_config=CONFIG.FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=hidden_states.dtype,
    )
    if not WORKSPACE.is_workspace_manager_initialized():
        WORKSPACE.init_workspace_manager(hidden_states.device)
    kernel = MODULAR.FusedMoEKernel(PREPARE.MoEPrepareAndFinalizeNoDPEPModular(), experts(layer, config))
    out: torch.Tensor = kernel.apply(
        hidden_states.contiguous(), w13, w2, topk_weights, topk_ids, name, count, expert_map, False
    )
    return out
