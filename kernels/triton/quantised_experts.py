"""Experts whose GEMMs multiply codes of activations and weights, fp8 in blocks and int8: host side."""

from __future__ import annotations

import torch

import moecheck
import triton
from moecheck.numerics import INPUT
from moecheck.quantization import SCHEMES

from ._jit_quantised import quantise_rows_kernel, quantised_gemm_kernel
from ._launch import block_columns, check_spec
from .experts import Blocks
from .rows import act_and_mul, sum_rows

BLOCK = 128
LEAST_AMAX = 1e-10
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


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
    """Activations in 1 x 128, weights in 128 x 128, float scales; each launch stores the input's dtype.

    hidden_states: [T, H]. w13: [L, 2I, H] fp8. w2: [L, H, I] fp8. w13_scale, w2_scale: [L, ceil(N / 128), ceil(K /
    128)] float32. topk_weights: [T, top_k] float32. topk_ids: [T, top_k] int32. w13_bias: [L, 2I]. w2_bias: [L, H].
    expert_map: [E] int32, global to local id. Returns [T, H].
    """
    return _experts(
        hidden_states, w13, w2, topk_weights, topk_ids, w13_scale, w2_scale, w13_bias, w2_bias, expert_map, spec, BLOCK
    )


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
    """A scale for each token and each output channel, products summed in int32. As above, scales [L, N, 1]."""
    return _experts(
        hidden_states, w13, w2, topk_weights, topk_ids, w13_scale, w2_scale, w13_bias, w2_bias, expert_map, spec, 0
    )


def _experts(
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w13_bias: torch.Tensor | None,
    w2_bias: torch.Tensor | None,
    expert_map: torch.Tensor | None,
    spec: moecheck.ExpertSpec,
    block: int,
) -> torch.Tensor:
    """Quantise, GEMM, activation, quantise, GEMM, sum. block: rows and columns that share a scale, 0 for a channel."""
    check_spec(spec)
    blocks = Blocks(topk_ids, num_experts=len(w13), expert_map=expert_map)
    dtype, top_k = hidden_states.dtype, topk_ids.shape[1]
    gate_up = _gemm(blocks, hidden_states, w13, w13_scale, w13_bias, None, block, pairs_per_row=top_k, dtype=dtype)
    hidden = act_and_mul(x=gate_up, spec=spec)
    weighted = _gemm(blocks, hidden, w2, w2_scale, w2_bias, topk_weights, block, pairs_per_row=1, dtype=dtype)
    return sum_rows(weighted, blocks.slots(), dtype=dtype)


def quantise_rows(x: torch.Tensor, group: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, K] and scales [rows, ceil(K / group)] float32; group 0 is the whole row."""
    rows, width = x.shape
    group = group or width
    groups = triton.cdiv(width, group)
    codes = torch.empty(rows, width, dtype=dtype, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    if codes.numel():
        quantise_rows_kernel[(rows, groups)](
            x, codes, scales, width, x.stride(0), codes.stride(0), scales.stride(0),
            GROUP=group, BLOCK=triton.next_power_of_2(group), LARGEST=LARGEST[dtype], LEAST_AMAX=LEAST_AMAX,
            INTEGER=dtype == torch.int8,
        )  # fmt: skip
    return codes, scales


def _gemm(
    blocks: Blocks,
    x: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    block: int,
    *,
    pairs_per_row: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """W x + bias of every pair, weighted if given: [T * top_k, n] in `dtype`; 0 for pairs without an expert."""
    codes, x_scale = quantise_rows(x.contiguous(), block, w.dtype)
    w, w_scale = w.contiguous(), w_scale.contiguous()
    outputs, inputs = w.shape[1:]
    y = torch.zeros(blocks.topk_ids.numel(), outputs, dtype=dtype, device=x.device)
    if y.numel():
        columns = block_columns(outputs)
        quantised_gemm_kernel[(len(blocks.metadata[1]), triton.cdiv(outputs, columns))](
            codes, x_scale, w, w_scale, x if bias is None else bias.contiguous(),
            x if weights is None else weights.contiguous(), y, *blocks.metadata, len(y), outputs, inputs,
            codes.stride(0), x_scale.stride(0), w.stride(0), w.stride(1), w_scale.stride(0), w_scale.stride(1),
            outputs, y.stride(0),
            PAIRS_PER_ROW=pairs_per_row, HAS_BIAS=bias is not None, WEIGHTED=weights is not None,
            INTEGER=w.dtype == torch.int8, SCALE_ROWS=block or 1, GROUP=block or triton.next_power_of_2(inputs),
            BLOCK_M=blocks.block_m, BLOCK_N=columns, BLOCK_K=min(128, max(32, block_columns(inputs))),
        )  # fmt: skip
    return y
