"""Where each expert's rows go: counts, block-aligned and grouped-GEMM metadata in PyTorch."""

from __future__ import annotations

import moecheck
import torch

from .index_add import local_ids


@moecheck.kernel("align_block_size", backend="torch", name="torch/align_block_size", deterministic=True)
def align_block_size(
    *, topk_ids: torch.Tensor, block_size: int, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token, slot) pairs sorted by expert, each expert padded to whole blocks; slots without an expert get no block.

    topk_ids: [T, top_k] int32. expert_map: [E] int32, global to local id. Returns sorted_token_ids [L] (token * top_k +
    slot, padded with T * top_k), expert_ids [ceil(L / block_size)] (local, experts by global id, padded with -1) and
    num_tokens_post_padded [1], all int32; L is the most that any ids can need.
    """
    device, numel = topk_ids.device, topk_ids.numel()
    local = local_ids(topk_ids, expert_map).flatten()
    ids, order = topk_ids.flatten().long().where(local >= 0, num_experts).sort(stable=True)
    counts = torch.bincount(ids, minlength=num_experts + 1)[:num_experts]
    blocks = (counts + block_size - 1) // block_size
    shift = (blocks.cumsum(0) - blocks) * block_size - (counts.cumsum(0) - counts)
    ids, order = ids[ids < num_experts], order[: int(counts.sum())]

    length = min(numel + num_experts * (block_size - 1), numel * block_size)
    sorted_ids = torch.full((length,), numel, dtype=torch.int32, device=device)
    sorted_ids[torch.arange(len(ids), device=device) + shift[ids]] = order.to(torch.int32)
    expert_ids = torch.full(((length + block_size - 1) // block_size,), -1, dtype=torch.int32, device=device)
    used = local_ids(torch.arange(num_experts, device=device).repeat_interleave(blocks), expert_map)
    expert_ids[: len(used)] = used.to(torch.int32)
    return sorted_ids, expert_ids, torch.tensor([len(used) * block_size], dtype=torch.int32, device=device)


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


@moecheck.kernel("expert_counts", backend="torch", name="torch/expert_counts", deterministic=True)
def expert_counts(*, topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None = None) -> torch.Tensor:
    """How many slots each local expert has; ids that are -1 or map to -1 count nowhere.

    topk_ids: [T, top_k] int32. expert_map: [E] int32. Returns [L] int32.
    """
    experts = num_experts if expert_map is None else int((expert_map >= 0).sum())
    ids = local_ids(topk_ids, expert_map).flatten()
    return torch.bincount(ids[ids >= 0], minlength=experts).to(torch.int32)
