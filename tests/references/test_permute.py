"""permute: hand-worked rows, the map, and its invariants on random ids."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.references.permute import permute

X = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], dtype=np.float32)
IDS = np.array([[2, 0], [0, -1], [2, 1]], dtype=np.int32)


def test_rows_are_sorted_by_expert_then_token() -> None:
    permuted, scale, starts, inverse = permute(hidden_states=X, topk_ids=IDS, num_experts=4)
    np.testing.assert_array_equal(permuted[:, 0], [1, 2, 3, 1, 3, np.nan])
    np.testing.assert_array_equal(starts, [0, 2, 3, 5, 5])
    np.testing.assert_array_equal(inverse, [[3, 0], [1, -1], [4, 2]])
    assert scale is None
    assert starts.dtype == inverse.dtype == np.int32


def test_non_local_experts_have_no_row() -> None:
    expert_map = np.array([-1, 1, 0, 2], dtype=np.int32)  # id -1 must not read the last entry
    permuted, scale, starts, inverse = permute(
        hidden_states=X, topk_ids=IDS, num_experts=4, expert_map=expert_map, hidden_scale=X[:, 1:]
    )
    np.testing.assert_array_equal(permuted[:, 1], [10, 30, 30, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(starts, [0, 2, 3, 3])
    np.testing.assert_array_equal(inverse, [[0, -1], [-1, -1], [1, 2]])
    np.testing.assert_array_equal(scale, permuted[:, 1:])


def test_no_tokens_give_no_rows() -> None:
    permuted, _, starts, inverse = permute(hidden_states=X[:0], topk_ids=IDS[:0], num_experts=4)
    assert permuted.shape == (0, 2)
    assert inverse.shape == (0, 2)
    np.testing.assert_array_equal(starts, np.zeros(5))


@pytest.mark.parametrize("seed", range(5))
def test_each_row_is_its_token_s_and_each_group_its_expert_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, 7, size=(11, 3)).astype(np.int32)
    x = rng.standard_normal((11, 4))
    permuted, _, starts, inverse = permute(hidden_states=x, topk_ids=ids, num_experts=7)
    for (token, slot), row in np.ndenumerate(inverse):
        expert = ids[token, slot]
        assert (row == -1) == (expert == -1)
        if expert >= 0:
            assert starts[expert] <= row < starts[expert + 1]
            np.testing.assert_array_equal(permuted[row], x[token])
    assert sorted(inverse[inverse >= 0]) == list(range(starts[-1]))
