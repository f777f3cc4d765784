"""Where each expert's rows go: block-aligned and grouped-GEMM metadata in PyTorch."""

from __future__ import annotations

import moecheck
import torch

from .index_add import local_ids


@moecheck.kernel("align_block_size", backend="torch", name="torch/align_block_size", deterministic=True)
def align_block_size(
    *, topk_ids: torch.Tensor, block_size: int, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token, slot) pairs sorted by expert, each expert padded to whole blocks; slots without an expert are left out.

    topk_ids: [T, top_k] int32. expert_map: [E] int32, global to local id.
    Returns sorted_token_ids [P] (token * top_k + slot, padded with T * top_k), expert_ids [P / block_size] (local) and
    num_tokens_post_padded [1], all int32.
    """
    experts = num_experts if expert_map is None else int((expert_map >= 0).sum())
    local = local_ids(topk_ids, expert_map).flatten()
    ids, order = local.where(local >= 0, experts).sort(stable=True)
    counts = torch.bincount(ids, minlength=experts + 1)[:experts]
    blocks = (counts + block_size - 1) // block_size
    starts, padded_starts = counts.cumsum(0) - counts, (blocks.cumsum(0) - blocks) * block_size
    valid = ids < experts
    ids, order = ids[valid], order[valid]
    total = int(blocks.sum()) * block_size
    sorted_ids = torch.full((total,), topk_ids.numel(), dtype=torch.int32, device=ids.device)
    position = torch.arange(len(ids), device=ids.device) - starts[ids] + padded_starts[ids]
    sorted_ids[position] = order.to(torch.int32)
    expert_ids = torch.arange(experts, device=ids.device, dtype=torch.int32).repeat_interleave(blocks)
    return sorted_ids, expert_ids, torch.tensor([total], dtype=torch.int32, device=ids.device)


@moecheck.kernel("problem_sizes", backend="torch", name="torch/problem_sizes", deterministic=True)
def problem_sizes(
    *,
    topk_ids: torch.Tensor,
    num_experts: int,
    intermediate_size: int,
    hidden_size: int,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row offsets and (rows, n, k) of both GEMMs per local expert.

    topk_ids: [T, top_k] int32. expert_map: [E] int32. Returns expert_starts [L+1], problem_sizes1 [L, 3] with n = 2I,
    k = H and problem_sizes2 [L, 3] with n = H and k = I, all int32.
    """
    experts = num_experts if expert_map is None else int((expert_map >= 0).sum())
    ids = local_ids(topk_ids, expert_map).flatten()
    counts = torch.bincount(ids[ids >= 0], minlength=experts)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    sizes = [
        torch.stack([counts, torch.full_like(counts, n), torch.full_like(counts, k)], dim=1).to(torch.int32)
        for n, k in ((2 * intermediate_size, hidden_size), (hidden_size, intermediate_size))
    ]
    return starts.to(torch.int32), sizes[0], sizes[1]
