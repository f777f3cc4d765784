"""Experts with fp8 weights, whose inputs are quantised to fp8 too: per tensor, per token, and in blocks."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT
from moecheck.quantization import SCHEMES

from ._quantised import experts, narrowed, quantise_groups
from .index_add import local_ids

BLOCK = 128


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/fp8_tensor",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        per_expert=INPUT,
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
    """One scale for an expert's matrix and one for all inputs of a GEMM, by torch._scaled_mm.

    hidden_states: [T, H]. w13: [L, 2I or I, H] fp8. w2: [L, H, I] fp8. w13_scale, w2_scale: [L, 1, 1] float32.
    a1_scale, a2_scale: [1] float32. topk_weights: [T, top_k] float32. topk_ids: [T, top_k] int32. w13_bias: [L, 2I or
    I]. w2_bias: [L, H]. expert_map: [E] int32, global to local id. Returns [T, H].
    """

    def gemm(x: torch.Tensor, w: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
        codes = narrowed(x.float() / x_scale, w.dtype)
        return _scaled_mm(codes, w, x_scale.reshape(()), w_scale.reshape(()))

    return experts(
        hidden_states,
        topk_weights,
        local_ids(topk_ids, expert_map),
        spec,
        first=lambda x, e: gemm(x, w13[e], a1_scale, w13_scale[e]),
        second=lambda h, e: gemm(h, w2[e], a2_scale, w2_scale[e]),
        w13_bias=w13_bias,
        w2_bias=w2_bias,
    )


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/fp8_channel",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        per_expert=INPUT,
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
    """A scale for each token and for each output channel, by torch._scaled_mm. Arguments as above, scales [L, N, 1]."""

    def gemm(x: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
        codes, x_scale = quantise_groups(x, x.shape[1], w.dtype)
        return _scaled_mm(codes, w, x_scale, w_scale.reshape(1, -1))

    return experts(
        hidden_states,
        topk_weights,
        local_ids(topk_ids, expert_map),
        spec,
        first=lambda x, e: gemm(x, w13[e], w13_scale[e]),
        second=lambda h, e: gemm(h, w2[e], w2_scale[e]),
        w13_bias=w13_bias,
        w2_bias=w2_bias,
    )


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/fp8_block",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        per_expert=INPUT,
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
    return experts(
        hidden_states,
        topk_weights,
        local_ids(topk_ids, expert_map),
        spec,
        first=lambda x, e: block_gemm(x, w13[e], w13_scale[e]),
        second=lambda h, e: block_gemm(h, w2[e], w2_scale[e]),
        w13_bias=w13_bias,
        w2_bias=w2_bias,
    )


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/fp8_block_ue8m0",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        per_expert=INPUT,
        a1_quant=moecheck.Quantizer(group=BLOCK, scale="power_of_two"),
        a2_quant=moecheck.Quantizer(group=BLOCK, scale="power_of_two"),
    ),
    dtypes=("bf16",),
    deterministic=True,
    quantizations=(SCHEMES["fp8-block-ue8m0"],),
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
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """As fp8_block with powers of two as scales, of activations too."""
    return experts(
        hidden_states,
        topk_weights,
        local_ids(topk_ids, expert_map),
        spec,
        first=lambda x, e: block_gemm(x, w13[e], w13_scale[e], power_of_two=True),
        second=lambda h, e: block_gemm(h, w2[e], w2_scale[e], power_of_two=True),
        w13_bias=w13_bias,
        w2_bias=w2_bias,
    )


def block_gemm(x: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, *, power_of_two: bool = False) -> torch.Tensor:
    """Sum over blocks of 128 columns of (codes of x) (codes of w)^T times both scales, in float32.

    x: [rows, K]. w: [N, K] fp8. w_scale: [ceil(N / 128), ceil(K / 128)] float32. Returns [rows, N] float32.
    """
    codes, x_scale = quantise_groups(x, BLOCK, w.dtype, power_of_two=power_of_two)
    total = torch.zeros(len(x), len(w), dtype=torch.float32, device=x.device)
    for block, start in enumerate(range(0, w.shape[1], BLOCK)):
        columns = slice(start, start + BLOCK)
        product = codes[:, columns].float() @ w[:, columns].float().T
        of_rows = w_scale[:, block].repeat_interleave(BLOCK)[: len(w)]
        total += product * (x_scale[:, block, None] * of_rows)
    return total


def _scaled_mm(x: torch.Tensor, w: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
    """Product x w^T times both scales, [rows, N] float32. x: [rows, K]. w: [N, K]. scales: scalars, or of rows each."""
    if not hasattr(torch, "_scaled_mm"):
        raise moecheck.Unsupported(f"torch {torch.__version__} has no _scaled_mm")
    if x.is_cuda and (x.shape[1] % 16 or len(w) % 16):
        raise moecheck.Unsupported(f"_scaled_mm on CUDA takes multiples of 16, not a weight of {list(w.shape)}")
    if x.is_cuda and x_scale.ndim:  # row-wise scales give bf16 only
        raise moecheck.Unsupported("_scaled_mm on CUDA rounds row-wise products to bf16")
    rows = len(x)
    if x.is_cuda and rows % 16:  # cuBLAS has no fp32 result for 3 rows, say
        x = torch.nn.functional.pad(x.view(torch.uint8), (0, 0, 0, -rows % 16)).view(x.dtype)
    return torch._scaled_mm(x.contiguous(), w.T, scale_a=x_scale, scale_b=w_scale, out_dtype=torch.float32)[:rows]
