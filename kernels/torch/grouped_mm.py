"""Experts by torch.nn.functional.grouped_mm over rows sorted by expert."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT
from torch.nn import functional

from .activation import act_and_mul
from .index_add import local_ids


@moecheck.kernel(
    "grouped_gemm",
    backend="torch",
    name="torch/grouped_mm_gemm",
    numerics=moecheck.Numerics(),
    deterministic=True,
)
def grouped_gemm(*, x: torch.Tensor, w: torch.Tensor, expert_ends: torch.Tensor) -> torch.Tensor:
    """y[g] = x[g] w[g]^T over ragged groups of rows; rows past the last group are 0.

    x: [R, k]. w: [E, n, k]. expert_ends: [E] int32, inclusive prefix sums. Returns [R, n].
    Raises Unsupported where grouped_mm does: on CUDA for other than bf16, and for rows of no multiple of 16 bytes.
    """
    _check_layout(x, w)
    if len(x) == 0:
        return x.new_zeros(0, w.shape[1])
    y = functional.grouped_mm(x, w.transpose(1, 2), offs=expert_ends)
    row = torch.arange(len(x), device=x.device)
    return y.masked_fill((row >= expert_ends[-1])[:, None], 0)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/grouped_mm",
    numerics=moecheck.Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    deterministic=True,
)
def fused_experts(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """The weighted sum of each token's experts, without biases.

    hidden_states: [T, H]. w13: [L, 2I or I, H]. w2: [L, H, I]. topk_weights: [T, top_k] float32.
    topk_ids: [T, top_k] int32.
    expert_map: [E] int32, global to local id. Returns [T, H].
    """
    if spec.weight_on_input:
        raise moecheck.Unsupported("weights the experts' outputs, not their inputs")
    tokens, top_k = topk_ids.shape
    local = local_ids(topk_ids, expert_map).flatten()
    ids, order = local.where(local >= 0, len(w13)).sort(stable=True)  # slots without an expert go last
    ends = torch.searchsorted(ids, torch.arange(len(w13), device=ids.device), right=True).to(torch.int32)
    gate_up = grouped_gemm(x=hidden_states[order // top_k], w=w13, expert_ends=ends)
    per_expert = grouped_gemm(x=act_and_mul(x=gate_up, spec=spec), w=w2, expert_ends=ends)
    weighted = per_expert * topk_weights.flatten()[order, None].float()
    slots = torch.empty_like(weighted)
    slots[order] = weighted.masked_fill((ids == len(w13))[:, None], 0)
    return slots.view(tokens, top_k, hidden_states.shape[1]).sum(dim=1).to(hidden_states.dtype)


def _check_layout(x: torch.Tensor, w: torch.Tensor) -> None:
    if not hasattr(functional, "grouped_mm"):
        raise moecheck.Unsupported(f"torch {torch.__version__} has no torch.nn.functional.grouped_mm")
    if x.is_cuda and x.dtype != torch.bfloat16:
        raise moecheck.Unsupported(f"grouped_mm on CUDA takes bfloat16, not {x.dtype}")
    for name, row in (("x", x.shape[1]), ("w", w.shape[2])):
        size = row * x.element_size()
        if size % 16:
            raise moecheck.Unsupported(f"grouped_mm needs rows of a multiple of 16 bytes, {name} has {size}")
    if w.shape[1] * w.element_size() % 16:
        raise moecheck.Unsupported(f"grouped_mm needs outputs of a multiple of 16 bytes, w has {w.shape[1]} rows")
