"""Where each expert's rows go: block-aligned and grouped-GEMM metadata in CUDA C++, host side."""

from __future__ import annotations

import torch

import moecheck

from ._library import UNAVAILABLE as UNAVAILABLE
from ._library import library
from ._pairs import local_experts, planned


@moecheck.kernel("align_block_size", backend="cuda", name="cuda/align_block_size", deterministic=True)
def align_block_size(
    *, topk_ids: torch.Tensor, block_size: int, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token, slot) pairs sorted by expert, each expert padded to whole blocks; slots without an expert get no block.

    topk_ids: [T, top_k] int32. expert_map: [E] int32, global to local id. Returns sorted_token_ids [L] (token * top_k +
    slot in ascending order, padded with T * top_k), expert_ids [ceil(L / block_size)] (local, experts by global id,
    padded with -1) and num_tokens_post_padded [1], all int32; L is the most that any ids can need. Never waits for the
    device.
    """
    device, numel = topk_ids.device, topk_ids.numel()
    length = min(numel + num_experts * (block_size - 1), numel * block_size)
    sorted_ids = torch.empty(length, dtype=torch.int32, device=device)
    expert_ids = torch.empty(-(-length // block_size), dtype=torch.int32, device=device)
    post_padded = torch.empty(1, dtype=torch.int32, device=device)
    plan = planned(topk_ids, expert_map, num_experts=num_experts, buckets=num_experts, by_global=True)
    starts = plan.starts(multiple=block_size)
    library().blocks(plan.ids, plan.expert_map, num_experts, starts, block_size, sorted_ids, expert_ids, post_padded)
    plan.place(multiple=block_size, pair_at=sorted_ids)  # over the padding
    return sorted_ids, expert_ids, post_padded


@moecheck.kernel("problem_sizes", backend="cuda", name="cuda/problem_sizes", deterministic=True)
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
    k = H and problem_sizes2 [L, 3] with n = H and k = I, all int32. Waits for the device only to count the experts of a
    map.
    """
    experts = local_experts(num_experts, expert_map)
    first, second = (torch.empty(experts, 3, dtype=torch.int32, device=topk_ids.device) for _ in range(2))
    plan = planned(topk_ids, expert_map, num_experts=num_experts, buckets=experts)
    starts = plan.starts(sizes=(first, second), intermediate_size=intermediate_size, hidden_size=hidden_size)
    return starts, first, second
