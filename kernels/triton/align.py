"""Where each expert's rows go: counts, blocks of one expert each and GEMM sizes in Triton, host side."""

from __future__ import annotations

import torch

import moecheck
import triton

from ._jit_align import (
    add_chunks_kernel,
    align_few_kernel,
    align_kernel,
    count_chunks_kernel,
    place_kernel,
    problem_sizes_kernel,
)

FEW, FEW_EXPERTS = 128, 64  # pairs and experts that one program sorts
LARGEST_CHUNK = 4096
MANY = 4096  # pairs from which three launches over chunks are faster than one of all pairs for each expert
CHUNK_OF_MANY, PART_OF_CHUNK = 128, 32


@moecheck.kernel("align_block_size", backend="triton", name="triton/align_block_size", deterministic=True)
def align_block_size(
    *, topk_ids: torch.Tensor, block_size: int, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token, slot) pairs sorted by expert, each expert padded to whole blocks; slots without an expert get no block.

    topk_ids: [T, top_k] int32. expert_map: [E] int32, global to local id. Returns sorted_token_ids [L] (token * top_k +
    slot, padded with T * top_k), expert_ids [ceil(L / block_size)] (local, experts by global id, padded with -1) and
    num_tokens_post_padded [1], all int32; L is the most that any ids can need. One launch, or three for many pairs; the
    host waits for nothing.
    """
    pairs = topk_ids.numel()
    length = min(pairs + num_experts * (block_size - 1), pairs * block_size)
    blocks = triton.cdiv(length, block_size)
    second, third = -(-length // 4) * 4, -(-length // 4) * 4 + -(-blocks // 4) * 4  # Triton knows 16-byte alignment
    found = torch.empty(third + 1, dtype=torch.int32, device=topk_ids.device)
    sorted_ids, expert_ids, total = found[:length], found[second : second + blocks], found[third:]
    _align(topk_ids, expert_map, num_experts, (sorted_ids, expert_ids, total), None, block_size=block_size)
    return sorted_ids, expert_ids, total


def order_by_expert(
    topk_ids: torch.Tensor, expert_map: torch.Tensor | None, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where rows of a stable sort by local expert begin, and the row of each slot, -1 without an expert.

    topk_ids: [T, top_k] int32. num_experts: local ones. Returns [num_experts + 1] and [T, top_k], int32.
    """
    order = torch.empty(topk_ids.numel(), dtype=torch.int32, device=topk_ids.device)
    starts, inverse = order.new_empty(num_experts + 1), order.new_empty(topk_ids.shape)
    if num_experts == 0:
        return starts.zero_(), inverse.fill_(-1)
    _align(topk_ids, expert_map, num_experts, (order, order, order), (starts, inverse), block_size=1)
    return starts, inverse


@moecheck.kernel("problem_sizes", backend="triton", name="triton/problem_sizes", deterministic=True)
def problem_sizes(
    *,
    topk_ids: torch.Tensor,
    num_experts: int,
    intermediate_size: int,
    hidden_size: int,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row offsets and (rows, n, k) of both GEMMs per local expert, in one launch.

    topk_ids: [T, top_k] int32. expert_map: [E] int32. Returns expert_starts [L+1], problem_sizes1 [L, 3] with n = 2I,
    k = H and problem_sizes2 [L, 3] with n = H and k = I, all int32.
    """
    ids, experts = topk_ids.contiguous(), local_experts(num_experts, expert_map)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=ids.device)
    sizes = torch.empty(2, experts, 3, dtype=torch.int32, device=ids.device)
    problem_sizes_kernel[(1,)](
        ids, ids if expert_map is None else expert_map, starts, sizes, ids.numel(), experts, intermediate_size,
        hidden_size, HAS_MAP=expert_map is not None, BINS=_bins(experts), CHUNK=_chunk(ids.numel()), num_warps=8,
    )  # fmt: skip
    return starts, sizes[0], sizes[1]


def local_experts(num_experts: int, expert_map: torch.Tensor | None) -> int:
    """How many experts are here; with a map the host has to wait for the answer."""
    return num_experts if expert_map is None else int((expert_map >= 0).sum())


def _align(
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    num_experts: int,
    blocks: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    permutation: tuple[torch.Tensor, torch.Tensor] | None,
    *,
    block_size: int,
) -> None:
    """Fill `blocks` by global expert id, or the first of them and `permutation` (starts, inverse) by local id."""
    ids, (sorted_ids, expert_ids, total) = topk_ids.contiguous(), blocks
    pairs = ids.numel()
    mapping = ids if expert_map is None else expert_map
    starts, inverse = permutation or (ids, ids)
    of_ids = {"HAS_MAP": expert_map is not None, "BY_LOCAL": permutation is not None, "BINS": _bins(num_experts)}
    sizes = (pairs, num_experts, len(sorted_ids), len(expert_ids), block_size)
    if pairs <= FEW and num_experts <= FEW_EXPERTS and block_size <= 128:
        align_few_kernel[(1,)](
            ids, mapping, sorted_ids, expert_ids, total, starts, inverse, *sizes,
            **of_ids, PERMUTES=permutation is not None, CHUNK=FEW,
            BLOCK=triton.next_power_of_2(block_size), BLOCKS=triton.next_power_of_2(max(1, len(expert_ids))),
        )  # fmt: skip
        return
    if pairs < MANY:
        align_kernel[(num_experts,)](
            ids, mapping, sorted_ids, expert_ids, total, starts, inverse, *sizes,
            **of_ids, PERMUTES=permutation is not None, CHUNK=_chunk(pairs),
        )  # fmt: skip
        return
    chunks = triton.cdiv(pairs, CHUNK_OF_MANY)
    totals = torch.empty(-(-num_experts // 4) * 4 + num_experts * chunks, dtype=torch.int32, device=ids.device)
    counts = totals[-(-num_experts // 4) * 4 :]
    count_chunks_kernel[(chunks,)](ids, mapping, counts, pairs, num_experts, chunks, **of_ids, CHUNK=CHUNK_OF_MANY)
    add_chunks_kernel[(num_experts,)](counts, totals, chunks, BLOCK=min(1024, triton.next_power_of_2(chunks)))
    place_kernel[(chunks,)](
        ids, mapping, counts, totals, sorted_ids, expert_ids, total, starts, inverse, *sizes, chunks,
        **of_ids, PERMUTES=permutation is not None, CHUNK=CHUNK_OF_MANY, PART=PART_OF_CHUNK, num_warps=8,
    )  # fmt: skip


def _bins(num_experts: int) -> int:
    bins: int = triton.next_power_of_2(max(32, num_experts + 1))
    return bins


def _chunk(pairs: int) -> int:
    chunk: int = triton.next_power_of_2(max(128, min(pairs, LARGEST_CHUNK)))
    return chunk
