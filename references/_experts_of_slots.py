"""Which local expert, if any, each (token, slot) belongs to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecheck.formats import AnyArray

ROWS = 256  # rows of one expert computed at a time: bounds the extra memory
TOGETHER = 48  # rows of several experts estimated at a time: arrays that are large enough, and small enough for a cache


def local_ids(topk_ids: AnyArray, expert_map: AnyArray | None) -> AnyArray:
    """topk_ids through the map, int64; -1 where the id is -1 or its expert is not here. Same shape as topk_ids.

    topk_ids: [T, k] int, global. expert_map: [E] int, global to local id, -1 = not on this rank; None: all are local.
    """
    ids = topk_ids.astype(np.int64)
    if expert_map is None:
        return ids
    return np.where(ids >= 0, expert_map.astype(np.int64)[ids], -1)


def count_local_experts(num_experts: int, expert_map: AnyArray | None) -> int:
    """E_local: the experts that the map places on this rank."""
    return num_experts if expert_map is None else int(np.count_nonzero(expert_map >= 0))


def rows_of_experts(topk_ids: AnyArray, expert_map: AnyArray | None) -> Iterator[tuple[int, AnyArray, AnyArray]]:
    """(local expert, its tokens, their slots) for each expert with rows, in ascending expert order, rows by token."""
    ids = local_ids(topk_ids, expert_map)
    for expert in np.unique(ids[ids >= 0]):
        tokens, slots = np.nonzero(ids == expert)
        yield int(expert), tokens, slots


def blocks(count: int) -> Iterator[slice]:
    """Consecutive slices of at most ROWS rows."""
    for start in range(0, count, ROWS):
        yield slice(start, start + ROWS)


def batches_of_experts(
    topk_ids: AnyArray, expert_map: AnyArray | None
) -> Iterator[tuple[AnyArray, AnyArray, list[tuple[int, slice]]]]:
    """Tokens, slots, and (local expert, its rows) of as many experts as have TOGETHER rows, at most ROWS of one."""
    tokens, slots, experts = list[AnyArray](), list[AnyArray](), list[tuple[int, slice]]()
    count = 0
    for expert, its_tokens, its_slots in rows_of_experts(topk_ids, expert_map):
        for block in blocks(len(its_tokens)):
            tokens.append(its_tokens[block])
            slots.append(its_slots[block])
            experts.append((expert, slice(count, count + len(tokens[-1]))))
            count = experts[-1][1].stop
            if count >= TOGETHER:
                yield np.concatenate(tokens), np.concatenate(slots), experts
                tokens, slots, experts, count = [], [], [], 0
    if experts:
        yield np.concatenate(tokens), np.concatenate(slots), experts
