"""align_block_size: hand-worked blocks, the map, and its invariants on random ids."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.references.align_block_size import align_block_size

IDS = np.array([[2, 0], [2, -1], [2, 1]], dtype=np.int32)


def test_each_expert_s_pairs_fill_blocks_of_their_own() -> None:
    sorted_ids, expert_ids, end = align_block_size(topk_ids=IDS, block_size=2, num_experts=4)
    np.testing.assert_array_equal(sorted_ids, [1, 6, 5, 6, 0, 2, 4, 6, 6, 6])
    np.testing.assert_array_equal(expert_ids, [0, 1, 2, 2, -1])
    np.testing.assert_array_equal(end, [8])


def test_under_a_map_blocks_carry_local_ids_and_other_experts_get_none() -> None:
    expert_map = np.array([-1, 1, 0, -1], dtype=np.int32)
    sorted_ids, expert_ids, end = align_block_size(topk_ids=IDS, block_size=4, num_experts=4, expert_map=expert_map)
    np.testing.assert_array_equal(sorted_ids[:8], [5, 6, 6, 6, 0, 2, 4, 6])
    np.testing.assert_array_equal(sorted_ids[8:], 6)
    np.testing.assert_array_equal(expert_ids, [1, 0, -1, -1, -1])
    np.testing.assert_array_equal(end, [8])


def test_no_tokens_need_no_blocks() -> None:
    sorted_ids, expert_ids, end = align_block_size(topk_ids=IDS[:0], block_size=16, num_experts=4)
    assert len(sorted_ids) == len(expert_ids) == end[0] == 0


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("num_experts", [2, 60])
def test_every_pair_is_in_one_block_of_its_expert(block_size: int, num_experts: int) -> None:
    ids = np.random.default_rng(block_size).integers(-1, num_experts, size=(17, 3)).astype(np.int32)
    sorted_ids, expert_ids, end = align_block_size(topk_ids=ids, block_size=block_size, num_experts=num_experts)
    counts = np.bincount(ids[ids >= 0], minlength=num_experts)
    assert end[0] == (np.ceil(counts / block_size) * block_size).sum()
    real = np.flatnonzero(sorted_ids < ids.size)
    assert sorted(sorted_ids[real]) == list(np.flatnonzero(ids.ravel() >= 0))
    np.testing.assert_array_equal(expert_ids[real // block_size], ids.ravel()[sorted_ids[real]])
    assert (expert_ids[end[0] // block_size :] == -1).all()
    assert len(sorted_ids) >= end[0]
