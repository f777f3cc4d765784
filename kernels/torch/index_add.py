"""Experts one after the other, each adding its rows to an fp32 output."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT
from torch.nn import functional

from .activation import act_and_mul


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/index_add",
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
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """The weighted sum of each token's experts; ids that are -1 or map to -1 add nothing.

    hidden_states: [T, H]. w13: [L, 2I or I, H]. w2: [L, H, I]. topk_weights: [T, top_k] float32.
    topk_ids: [T, top_k] int32.
    w13_bias: [L, 2I or I]. w2_bias: [L, H]. expert_map: [E] int32, global to local id. Returns [T, H].
    """
    out = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
    ids = local_ids(topk_ids, expert_map)
    for expert in torch.unique(ids[ids >= 0]).tolist():
        token, slot = torch.where(ids == expert)
        weight = topk_weights[token, slot, None].float()
        rows = hidden_states[token]
        rows = feed_forward(
            rows * weight if spec.weight_on_input else rows,
            w13=w13[expert],
            w2=w2[expert],
            w13_bias=None if w13_bias is None else w13_bias[expert],
            w2_bias=None if w2_bias is None else w2_bias[expert],
            spec=spec,
        )
        out.index_add_(0, token, rows.float() if spec.weight_on_input else rows * weight)
    return out.to(hidden_states.dtype)


def local_ids(topk_ids: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    """Row of w13 for each slot, -1 where the slot has no expert here: [T, top_k] int64."""
    ids = topk_ids.long()
    if expert_map is None:
        return ids
    return torch.where(ids >= 0, expert_map.long()[ids.clamp(min=0)], -1)


def feed_forward(
    rows: torch.Tensor,
    *,
    w13: torch.Tensor,
    w2: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """One expert on its rows: [rows, H] to [rows, H], every GEMM and the activation stored once, in w13's dtype.

    rows may be float32 whatever the weights are: a weighted input is not rounded before its GEMM.
    """
    bias = None if w13_bias is None else w13_bias.to(rows.dtype)
    gate_up = functional.linear(rows, w13.to(rows.dtype), bias).to(w13.dtype)
    return functional.linear(act_and_mul(x=gate_up, spec=spec), w2, w2_bias)
