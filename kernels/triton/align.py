"""Where each expert's rows go: counts, blocks of one expert each and GEMM sizes in Triton, host side."""

from __future__ import annotations

import torch

import moecheck
import triton

from ._jit_align import align_kernel, count_kernel

CHUNK = 4096
COUNTED_FROM = 4096  # pairs from which a launch of its own counts faster than every program for itself


@moecheck.kernel("align_block_size", backend="triton", name="triton/align_block_size", deterministic=True)
def align_block_size(
    *, topk_ids: torch.Tensor, block_size: int, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token, slot) pairs sorted by expert, each expert padded to whole blocks; slots without an expert get no block.

    topk_ids: [T, top_k] int32. expert_map: [E] int32, global to local id. Returns sorted_token_ids [L] (token * top_k +
    slot, padded with T * top_k), expert_ids [ceil(L / block_size)] (local, experts by global id, padded with -1) and
    num_tokens_post_padded [1], all int32; L is the most that any ids can need. One launch, or two for many pairs; the
    host waits for nothing.
    """
    pairs = topk_ids.numel()
    length = min(pairs + num_experts * (block_size - 1), pairs * block_size)
    blocks = triton.cdiv(length, block_size)
    second, third = -(-length // 4) * 4, -(-length // 4) * 4 + -(-blocks // 4) * 4  # Triton knows 16-byte alignment
    found = torch.empty(third + 1, dtype=torch.int32, device=topk_ids.device)
    sorted_ids, expert_ids, total = found[:length], found[second : second + blocks], found[third:]
    _align(
        topk_ids, expert_map, num_experts, sorted_ids, expert_ids, total, None, None, block_size=block_size, local=False
    )
    return sorted_ids, expert_ids, total


def order_by_expert(
    topk_ids: torch.Tensor, expert_map: torch.Tensor | None, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where rows of a stable sort by local expert begin, and the row of each slot, -1 without an expert.

    topk_ids: [T, top_k] int32. num_experts: local ones. Returns [num_experts + 1] and [T, top_k], int32.
    """
    pairs = topk_ids.numel()
    order = torch.empty(pairs, dtype=torch.int32, device=topk_ids.device)
    starts, inverse = order.new_empty(num_experts + 1), torch.empty_like(topk_ids, dtype=torch.int32)
    _align(topk_ids, expert_map, num_experts, order, order, order, starts, inverse, block_size=1, local=True)
    return starts, inverse


@moecheck.kernel("expert_counts", backend="triton", name="triton/expert_counts", deterministic=True)
def expert_counts(*, topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None = None) -> torch.Tensor:
    """How many slots each local expert has; ids that are -1 or map to -1 count nowhere.

    topk_ids: [T, top_k] int32. expert_map: [E] int32. Returns [L] int32.
    """
    return _counts(topk_ids, expert_map, local_experts(num_experts, expert_map), local=True)


@moecheck.kernel("problem_sizes", backend="triton", name="triton/problem_sizes", deterministic=True)
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
    counts = expert_counts(topk_ids=topk_ids, num_experts=num_experts, expert_map=expert_map)
    starts = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    sizes = torch.empty(2, len(counts), 3, dtype=torch.int32, device=counts.device)
    sizes[:, :, 0] = counts
    sizes[0, :, 1], sizes[0, :, 2] = 2 * intermediate_size, hidden_size
    sizes[1, :, 1], sizes[1, :, 2] = hidden_size, intermediate_size
    return starts, sizes[0], sizes[1]


def local_experts(num_experts: int, expert_map: torch.Tensor | None) -> int:
    """How many experts are here; with a map the host has to wait for the answer."""
    return num_experts if expert_map is None else int((expert_map >= 0).sum())


def _counts(ids: torch.Tensor, expert_map: torch.Tensor | None, num_experts: int, *, local: bool) -> torch.Tensor:
    counts = torch.empty(num_experts, dtype=torch.int32, device=ids.device)
    if num_experts:
        ids = ids.contiguous()
        count_kernel[(num_experts,)](
            ids, ids if expert_map is None else expert_map, counts, ids.numel(),
            HAS_MAP=expert_map is not None, BY_LOCAL=local, CHUNK=_chunk(ids.numel()), num_warps=8,
        )  # fmt: skip
    return counts


def _align(
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    num_experts: int,
    sorted_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    total: torch.Tensor,
    starts: torch.Tensor | None,
    inverse: torch.Tensor | None,
    *,
    block_size: int,
    local: bool,
) -> None:
    ids = topk_ids.contiguous()
    pairs, counted = ids.numel(), ids.numel() >= COUNTED_FROM
    counts = _counts(ids, expert_map, num_experts, local=local) if counted else ids
    align_kernel[(max(1, num_experts),)](
        ids, ids if expert_map is None else expert_map, counts, sorted_ids, expert_ids, total,
        ids if starts is None else starts, ids if inverse is None else inverse,
        pairs, num_experts, len(sorted_ids), len(expert_ids), block_size,
        HAS_MAP=expert_map is not None, BY_LOCAL=local, COUNTED=counted, PERMUTES=starts is not None,
        BINS=triton.next_power_of_2(max(32, num_experts + 1)), CHUNK=_chunk(pairs), num_warps=8 if counted else 4,
    )  # fmt: skip


def _chunk(pairs: int) -> int:
    chunk: int = triton.next_power_of_2(max(128, min(pairs, CHUNK)))
    return chunk
