"""problem_sizes: hand-worked sizes, with and without a map."""

from __future__ import annotations

import numpy as np

from moecheck.references.problem_sizes import problem_sizes

IDS = np.array([[2, 0], [2, -1], [2, 1]], dtype=np.int32)


def test_sizes_are_rows_columns_contraction() -> None:
    starts, first, second = problem_sizes(topk_ids=IDS, num_experts=4, intermediate_size=5, hidden_size=7)
    np.testing.assert_array_equal(starts, [0, 1, 2, 5, 5])
    np.testing.assert_array_equal(first, [(1, 10, 7), (1, 10, 7), (3, 10, 7), (0, 10, 7)])
    np.testing.assert_array_equal(second, [(1, 7, 5), (1, 7, 5), (3, 7, 5), (0, 7, 5)])
    assert starts.dtype == first.dtype == second.dtype == np.int32


def test_under_a_map_rows_are_local_experts() -> None:
    starts, first, second = problem_sizes(
        topk_ids=IDS,
        num_experts=4,
        intermediate_size=5,
        hidden_size=7,
        expert_map=np.array([-1, 1, 0, -1], dtype=np.int32),
    )
    np.testing.assert_array_equal(starts, [0, 3, 4])
    np.testing.assert_array_equal(first[:, 0], [3, 1])
    np.testing.assert_array_equal(second, [(3, 7, 5), (1, 7, 5)])
