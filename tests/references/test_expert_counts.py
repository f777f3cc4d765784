"""expert_counts by hand, and as the differences of permute's offsets."""

from __future__ import annotations

import numpy as np

from moecheck.references.expert_counts import expert_counts
from moecheck.references.permute import permute

IDS = np.array([[0, 2], [2, -1], [3, 2], [-1, -1]], np.int32)


def test_by_hand() -> None:
    counts = expert_counts(topk_ids=IDS, num_experts=5)
    assert counts.tolist() == [1, 0, 3, 1, 0]
    assert counts.dtype == np.int32


def test_through_a_map() -> None:
    """Experts 3 and 2 are here, as 0 and 1."""
    assert expert_counts(topk_ids=IDS, num_experts=5, expert_map=np.array([-1, -1, 1, 0, -1])).tolist() == [1, 3]


def test_unsigned_and_wide_ids() -> None:
    ids = np.where(IDS < 0, 4, IDS)
    wanted = [1, 0, 3, 1, 3]
    for dtype in (np.int64, np.uint32):
        assert expert_counts(topk_ids=ids.astype(dtype), num_experts=5).tolist() == wanted


def test_no_token() -> None:
    assert expert_counts(topk_ids=np.zeros((0, 2), np.int32), num_experts=3).tolist() == [0, 0, 0]


def test_they_are_the_lengths_of_permutes_runs() -> None:
    ids = np.random.default_rng(0).integers(-1, 9, (50, 3)).astype(np.int32)
    mapped = np.array([2, -1, 0, -1, -1, 1, -1, 3, -1], np.int32)
    _, _, starts, _ = permute(hidden_states=np.zeros((50, 1)), topk_ids=ids, num_experts=9, expert_map=mapped)
    assert np.array_equal(np.diff(starts), expert_counts(topk_ids=ids, num_experts=9, expert_map=mapped))
