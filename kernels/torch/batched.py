"""Experts on rows that lie expert by expert, [E, C, H], by batched matrix products; garbage rows are computed along."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT

from .activation import act_and_mul
from .index_add import local_ids
from .plan import expert_counts as count

TRANSPOSED = moecheck.WeightLayout(transposed=True)  # as the right side of a product
# As TensorRT-LLM and FlashInfer prepare weights: up rows first, both widths filled up to whole tiles.
PREPARED = moecheck.WeightLayout(gate_up="up_first", transposed=True, hidden_multiple=64, intermediate_multiple=64)


@moecheck.kernel(
    "batched_experts",
    backend="torch",
    name="torch/batched_experts",
    numerics=moecheck.Numerics(before_bias=INPUT, gate_up=INPUT, act_times_up=INPUT),
    weight_layout=TRANSPOSED,
)
def batched_experts(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    expert_counts: torch.Tensor,  # rows beyond them may hold anything, before and after
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Each expert on all of its rows.

    hidden_states: [E, C, H]. w13: [E, H, 2I or I]. w2: [E, I, H]. expert_counts: [E] int32. w13_bias: [E, 2I or I].
    w2_bias: [E, H]. Returns [E, C, H].
    """
    gate_up = _product(hidden_states, w13, w13_bias)
    h = act_and_mul(x=gate_up.flatten(0, 1), spec=spec)
    return _product(h.reshape(*gate_up.shape[:2], h.shape[1]), w2, w2_bias)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/batched",
    numerics=moecheck.Numerics(before_bias=INPUT, gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    deterministic=True,
    weight_layout=PREPARED,
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
    """Tokens copied to their experts' rows, the experts, and the weighted sum of each token's slots.

    hidden_states: [T, H]. w13: [L, H, 2I or I], up first. w2: [L, I, H]. topk_weights: [T, top_k] float32.
    topk_ids: [T, top_k] int32. w13_bias: [L, 2I or I]. w2_bias: [L, H]. expert_map: [E] int32, global to local id.
    H and I are multiples of 64. Returns [T, H].
    """
    if spec.weight_on_input:
        raise moecheck.Unsupported("weights the experts' outputs, not their inputs")
    ids = local_ids(topk_ids, expert_map)
    counts = count(topk_ids=ids, num_experts=len(w13))
    token, slot = torch.where(ids >= 0)
    expert = ids[token, slot]
    order = expert.argsort(stable=True)
    place = torch.empty_like(order)
    starts = counts.cumsum(0) - counts
    place[order] = torch.arange(len(order), device=order.device) - starts[expert[order]]

    room = max(1, int(counts.max()))
    rows = hidden_states.new_empty(len(w13), room, hidden_states.shape[1])
    rows[expert, place] = hidden_states[token]
    y = batched_experts(
        hidden_states=rows, w13=w13, w2=w2, expert_counts=counts, w13_bias=w13_bias, w2_bias=w2_bias, spec=spec
    )
    slots = torch.zeros((*ids.shape, hidden_states.shape[1]), dtype=torch.float32, device=ids.device)
    slots[token, slot] = y[expert, place].float() * topk_weights[token, slot, None].float()
    return slots.sum(dim=1).to(hidden_states.dtype)


def _product(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x[e] w[e], stored, + bias[e], stored: [E, C, n]. baddbmm stores once on CPUs and twice on CUDA."""
    y = torch.bmm(x, w)
    return y if bias is None else y + bias[:, None]
