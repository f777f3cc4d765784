"""Gather rows by expert and add them up again, in PyTorch."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT

from .index_add import local_ids


@moecheck.kernel("permute", backend="torch", name="torch/permute", deterministic=True, batch_invariant=True)
def permute(
    *,
    hidden_states: torch.Tensor,
    topk_ids: torch.Tensor,
    num_experts: int,
    hidden_scale: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Rows by a stable sort of the slots by local expert; slots without an expert go last.

    hidden_states: [T, H]. topk_ids: [T, top_k] int32. hidden_scale: [T, *] float32, gathered alike.
    expert_map: [E] int32. Returns permuted [T*top_k, H], permuted_scale or None, expert_starts [L+1] int32 and
    inv_permuted_idx [T, top_k] int32, -1 for a slot without an expert.
    """
    experts = num_experts if expert_map is None else int((expert_map >= 0).sum())
    local = local_ids(topk_ids, expert_map).flatten()
    ids, order = local.where(local >= 0, experts).sort(stable=True)
    token = order // topk_ids.shape[1]
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device).where(ids < experts, -1)
    starts = torch.searchsorted(ids, torch.arange(experts + 1, device=ids.device))
    scale = None if hidden_scale is None else hidden_scale[token]
    return hidden_states[token], scale, starts.to(torch.int32), inverse.view(topk_ids.shape).to(torch.int32)


@moecheck.kernel(
    "unpermute",
    backend="torch",
    name="torch/unpermute",
    numerics=moecheck.Numerics(out=INPUT),
    deterministic=True,
    batch_invariant=True,
)
def unpermute(*, permuted: torch.Tensor, topk_weights: torch.Tensor, inv_permuted_idx: torch.Tensor) -> torch.Tensor:
    """Each token's rows, weighted and added in fp32; negative indices add nothing.

    permuted: [R, H]. topk_weights: [T, top_k] float32. inv_permuted_idx: [T, top_k] int32. Returns [T, H].
    """
    valid = (inv_permuted_idx >= 0)[..., None]
    if len(permuted) == 0:
        return permuted.new_zeros(len(inv_permuted_idx), permuted.shape[1])
    rows = permuted[inv_permuted_idx.clamp(min=0).long()].float().masked_fill(~valid, 0)
    return (rows * topk_weights[..., None].float()).sum(dim=1).to(permuted.dtype)


@moecheck.kernel("shuffle_rows", backend="torch", name="torch/shuffle_rows", deterministic=True, batch_invariant=True)
def shuffle_rows(*, x: torch.Tensor, row_map: torch.Tensor) -> torch.Tensor:
    """Row row_map[i] of x as row i.

    x: [R0, W]. row_map: [R] int32. Returns [R, W].
    """
    return x.index_select(0, row_map.long())
