"""Each token's experts on their own in PyTorch, before any weight and sum."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT

from .index_add import feed_forward, local_ids


@moecheck.kernel(
    "expert_outputs",
    backend="torch",
    name="torch/expert_outputs",
    numerics=moecheck.Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    deterministic=True,
)
def expert_outputs(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """The output of each slot's expert, unweighted; rows of slots without an expert are left as they come.

    hidden_states: [T, H]. w13: [L, 2I or I, H]. w2: [L, H, I]. topk_ids: [T, top_k] int32. w13_bias: [L, 2I or I].
    w2_bias: [L, H]. expert_map: [E] int32, global to local id. Returns [T, top_k, H].
    """
    out = hidden_states.new_empty(*topk_ids.shape, hidden_states.shape[1])
    ids = local_ids(topk_ids, expert_map)
    for expert in torch.unique(ids[ids >= 0]).tolist():
        token, slot = torch.where(ids == expert)
        out[token, slot] = feed_forward(
            hidden_states[token],
            w13=w13[expert],
            w2=w2[expert],
            w13_bias=None if w13_bias is None else w13_bias[expert],
            w2_bias=None if w2_bias is None else w2_bias[expert],
            spec=spec,
        )
    return out
