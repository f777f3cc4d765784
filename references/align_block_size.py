"""Reference of `align_block_size`: (token, slot) pairs sorted by expert into blocks of one expert each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecheck.formats import AnyArray

from ._experts_of_slots import local_ids

Int32 = npt.NDArray[np.int32]


def align_block_size(
    *, topk_ids: AnyArray, block_size: int, num_experts: int, expert_map: AnyArray | None = None
) -> tuple[Int32, Int32, Int32]:
    """Blocks of `block_size` pairs p = token * k + slot, an expert's last block filled up with numel = T*k.

    topk_ids: [T, k] int, global, -1 = none. expert_map: [num_experts] int, global to local id, -1 = not here.
    Returns sorted_token_ids [L] int32; expert_ids [ceil(L / block_size)] int32, the *local* expert of each block;
    num_tokens_post_padded [1] int32 = sum over experts with n_e pairs of ceil(n_e / block_size) * block_size.
    L = numel + num_experts (block_size - 1), the most that any ids can need, or numel block_size where that is less.
    Padding: beyond num_tokens_post_padded, sorted_token_ids holds numel and expert_ids -1.
    Order: experts by global id; the pairs of one expert in ascending order here, in any order in a kernel.
    expert_map: pairs of experts that are not here, and pairs with id -1, get no block at all (vLLM's
    ignore_invalid_experts=True; without it they keep blocks whose expert id is -1, which multiply nothing).
    Source: vLLM moe_align_block_size.
    """
    numel = topk_ids.size
    ids, local = topk_ids.ravel(), local_ids(topk_ids, expert_map).ravel()
    length = min(numel + num_experts * (block_size - 1), numel * block_size)
    sorted_token_ids = np.full(length, numel, dtype=np.int32)
    expert_ids = np.full(-(-length // block_size), -1, dtype=np.int32)
    end = 0
    for expert in range(num_experts):
        pairs = np.flatnonzero((ids == expert) & (local >= 0))
        if len(pairs) == 0:
            continue
        blocks = -(-len(pairs) // block_size)
        sorted_token_ids[end : end + len(pairs)] = pairs
        expert_ids[end // block_size :][:blocks] = local[pairs[0]]
        end += blocks * block_size
    return sorted_token_ids, expert_ids, np.array([end], dtype=np.int32)
