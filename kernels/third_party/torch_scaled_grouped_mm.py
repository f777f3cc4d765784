"""Experts with fp8 weights by torch._scaled_grouped_mm: a scale for each row of activations and each output channel."""

from __future__ import annotations

import torch

import moecheck
from moecheck.numerics import INPUT
from moecheck.quantization import SCHEMES

from ..torch._quantised import quantise_groups
from ..torch.activation import act_and_mul
from ..torch.index_add import local_ids


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/scaled_grouped_mm",
    dtypes=("bf16",),
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        per_expert=INPUT,
        a1_quant=moecheck.Quantizer(),
        a2_quant=moecheck.Quantizer(),
        accumulate="hopper-fp8-promoted-128",
    ),
    deterministic=True,
    quantizations=(SCHEMES["fp8-channel"],),
)
def scaled_grouped_mm(
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
    """Rows sorted by expert, quantised one by one. Shapes as in fused_experts, scales [L, N, 1] float32."""
    if not hidden_states.is_cuda:
        raise moecheck.Unsupported("torch._scaled_grouped_mm needs a CUDA device")
    if w13.shape[2] % 16 or w2.shape[2] % 16:
        raise moecheck.Unsupported(f"_scaled_grouped_mm takes multiples of 16, not w13 {list(w13.shape)}")
    if spec.weight_on_input:
        raise moecheck.Unsupported("weights the experts' outputs, not their inputs")
    tokens, top_k = topk_ids.shape
    ids, order = local_ids(topk_ids, expert_map).flatten().sort(stable=True)  # slots without an expert come first
    absent = int((ids < 0).sum())
    ids, kept = ids[absent:], order[absent:]
    slots = torch.zeros(tokens * top_k, hidden_states.shape[1], dtype=torch.float32, device=ids.device)
    if len(kept):
        ends = torch.searchsorted(ids, torch.arange(len(w13), device=ids.device), right=True).to(torch.int32)
        gate_up = _gemm(hidden_states[kept // top_k], w13, w13_scale, ends)
        per_expert = _gemm(act_and_mul(x=gate_up, spec=spec), w2, w2_scale, ends)
        slots[kept] = per_expert * topk_weights.flatten()[kept, None].float()
    return slots.view(tokens, top_k, hidden_states.shape[1]).sum(dim=1).to(hidden_states.dtype)


def _gemm(x: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Product x w^T of each group times both scales, stored in bf16. x: [R, K]. w: [L, N, K] fp8. Returns [R, N]."""
    codes, x_scale = quantise_groups(x, x.shape[1], w.dtype)
    y: torch.Tensor = torch._scaled_grouped_mm(
        codes.contiguous(), w.transpose(1, 2), x_scale.flatten(), w_scale[..., 0], offs=ends, out_dtype=x.dtype
    )
    return y
