"""Experts whose GEMMs multiply codes of activations and weights, fp8 and int8: host side."""

from __future__ import annotations

import torch

import moecheck
from moecheck.numerics import INPUT
from moecheck.quantization import SCHEMES

from ._quantised_launch import BLOCK, quantised_experts

FIRST_WITH_FP8 = (8, 9)


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/fp8_tensor",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        weighted=INPUT,
        a1_quant=moecheck.Quantizer(static=True),
        a2_quant=moecheck.Quantizer(static=True),
    ),
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
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """One scale for an expert's matrix and one, given, for all inputs of a GEMM.

    hidden_states: [T, H]. w13: [L, 2I, H] fp8. w2: [L, H, I] fp8. w13_scale, w2_scale: [L, 1, 1] float32. a1_scale,
    a2_scale: [1] float32. topk_weights: [T, top_k] float32. topk_ids: [T, top_k] int32. w13_bias: [L, 2I]. w2_bias:
    [L, H]. expert_map: [E] int32, global to local id. Returns [T, H].
    """
    return quantised_experts(
        hidden_states, topk_weights, topk_ids, expert_map, spec,
        first=(w13, w13_scale, w13_bias, a1_scale), second=(w2, w2_scale, w2_bias, a2_scale), group=0,
    )  # fmt: skip


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/fp8_channel",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        weighted=INPUT,
        a1_quant=moecheck.Quantizer(),
        a2_quant=moecheck.Quantizer(),
    ),
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
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """A scale for each token and for each output channel. Arguments as above, scales [L, N, 1]."""
    return quantised_experts(
        hidden_states, topk_weights, topk_ids, expert_map, spec,
        first=(w13, w13_scale, w13_bias, None), second=(w2, w2_scale, w2_bias, None), group=0,
    )  # fmt: skip


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/fp8_block",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        weighted=INPUT,
        a1_quant=moecheck.Quantizer(group=BLOCK),
        a2_quant=moecheck.Quantizer(group=BLOCK),
    ),
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
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Activations in 1 x 128, weights in 128 x 128, float scales. As above, scales [L, ceil(N/128), ceil(K/128)]."""
    return quantised_experts(
        hidden_states, topk_weights, topk_ids, expert_map, spec,
        first=(w13, w13_scale, w13_bias, None), second=(w2, w2_scale, w2_bias, None), group=BLOCK,
    )  # fmt: skip


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/fp8_block_native",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        weighted=INPUT,
        a1_quant=moecheck.Quantizer(group=BLOCK),
        a2_quant=moecheck.Quantizer(group=BLOCK),
        accumulate="hopper-fp8-promoted-128",
    ),
    deterministic=True,
    quantizations=(SCHEMES["fp8-block"],),
)
def fp8_block_native(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """As fp8_block by fp8 tensor cores, whose sums of 14 bits are added up in fp32 every 128 terms."""
    if not hidden_states.is_cuda or torch.cuda.get_device_capability(hidden_states.device) < FIRST_WITH_FP8:
        raise moecheck.Unsupported("needs a GPU with fp8 tensor cores, of compute capability 8.9 or later")
    return quantised_experts(
        hidden_states, topk_weights, topk_ids, expert_map, spec,
        first=(w13, w13_scale, w13_bias, None), second=(w2, w2_scale, w2_bias, None), group=BLOCK, native=True,
    )  # fmt: skip


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/int8_channel",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        weighted=INPUT,
        a1_quant=moecheck.Quantizer(format="int8"),
        a2_quant=moecheck.Quantizer(format="int8"),
    ),
    deterministic=True,
    quantizations=(SCHEMES["int8-channel"],),
)
def int8_channel(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """A scale for each token and for each output channel, products summed in int32. As above, scales [L, N, 1]."""
    return quantised_experts(
        hidden_states, topk_weights, topk_ids, expert_map, spec,
        first=(w13, w13_scale, w13_bias, None), second=(w2, w2_scale, w2_bias, None), group=0,
    )  # fmt: skip
