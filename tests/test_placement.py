"""Expert placement by hand: maps, masks and replicas as the engines have them."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.errors import Unsupported, UsageError
from moecheck.placement import (
    expert_map,
    expert_mask,
    experts_of_rank,
    map_of_mask,
    physical_ids,
    replicas_of,
)


@pytest.mark.parametrize(
    ("style", "remainder", "wanted"),
    [
        pytest.param("linear", "first", [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]], id="the first two have one more"),
        pytest.param("linear", "last", [[0, 1], [2, 3], [4, 5], [6, 7, 8, 9]], id="the last has all that is left"),
        pytest.param("round_robin", "first", [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]], id="every fourth"),
    ],
)
def test_ten_experts_on_four_ranks(style: str, remainder: str, wanted: list[list[int]]) -> None:
    ranks = [
        experts_of_rank(rank, num_experts=10, num_ranks=4, style=style, remainder=remainder)  # type: ignore[arg-type]  # parametrized literals
        for rank in range(4)
    ]
    assert [owned.tolist() for owned in ranks] == wanted


@pytest.mark.parametrize("style", ["linear", "round_robin"])
@pytest.mark.parametrize("num_experts", [1, 2, 7, 40, 60, 257])
def test_each_expert_has_one_rank(style: str, num_experts: int) -> None:
    for num_ranks in (1, 2, 3, 8):
        owned = [
            experts_of_rank(rank, num_experts=num_experts, num_ranks=num_ranks, style=style)  # type: ignore[arg-type]  # parametrized literals
            for rank in range(num_ranks)
        ]
        assert sorted(np.concatenate(owned).tolist()) == list(range(num_experts))
        assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_a_map_and_its_mask() -> None:
    mapped = expert_map(np.array([1, 4]), 6)
    assert mapped.tolist() == [-1, 0, -1, -1, 1, -1]
    assert expert_mask(mapped).tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert expert_mask(mapped).dtype == np.int32
    assert np.array_equal(map_of_mask(expert_mask(mapped)), mapped)


def test_aiter_counts_local_ids_as_the_map_does() -> None:
    """AITER has no map: an expert's local id is the number of ones before it."""
    mapped = expert_map(experts_of_rank(1, num_experts=11, num_ranks=3, style="round_robin"), 11)
    mask = expert_mask(mapped)
    counted = np.where(mask[:-1] == 1, np.cumsum(mask)[:-1] - 1, -1)
    assert np.array_equal(counted, mapped)


def test_a_shuffled_map_has_no_mask() -> None:
    with pytest.raises(Unsupported, match="no mask can say that"):
        expert_mask(expert_map(np.array([4, 1]), 6))


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param([-1, 0, 1, 0], id="a map for a mask"),
        pytest.param([0, 1, 1], id="no sentinel"),
        pytest.param([], id="nothing"),
    ],
)
def test_what_is_no_mask_is_refused(mask: list[int]) -> None:
    with pytest.raises(UsageError, match="an expert_map is no mask"):
        map_of_mask(np.array(mask))


def test_a_rank_beyond_the_last_is_refused() -> None:
    with pytest.raises(UsageError, match="rank=4 must lie between 0 and 3"):
        experts_of_rank(4, num_experts=8, num_ranks=4)


def test_replicas_by_hand() -> None:
    """Expert 0 has the physical experts 0 and 3, expert 1 has 1, expert 2 has 2, 4 and 5."""
    replicas = replicas_of(np.array([0, 1, 2, 0, 2, 2]), 3)
    assert replicas.counts.tolist() == [2, 1, 3]
    assert replicas.physical.tolist() == [[0, 3, -1], [1, -1, -1], [2, 4, 5]]


def test_the_hash_by_hand() -> None:
    """2654435769 * (0, 1, 2) mod 2^32 = 0, 2654435769, 1013904242: odd, even and again even mod 2; 0, 0, 2 mod 3."""
    replicas = replicas_of(np.array([0, 1, 2, 0, 2, 2]), 3)
    ids = np.array([[0, 2], [0, 2], [2, -1]])
    assert [2654435769 * token % 2**32 for token in range(3)] == [0, 2654435769, 1013904242]
    assert physical_ids(ids, replicas).tolist() == [[0, 2], [3, 2], [5, -1]]


def test_slots_that_divide_evenly_always_take_the_same_copy() -> None:
    """The fault of vllm-project/vllm#40810: two copies, two slots; the hash uses both."""
    replicas = replicas_of(np.repeat(np.arange(4), 2), 4)
    ids = np.tile([1, 3], (64, 1))
    assert np.unique(physical_ids(ids, replicas, rule="slot")).tolist() == [2, 7]
    assert np.unique(physical_ids(ids, replicas)).tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize("rule", ["hash", "slot"])
def test_a_copy_holds_the_expert_that_was_chosen(rule: str) -> None:
    rng = np.random.default_rng(0)
    replicas = replicas_of(rng.permutation(np.repeat(np.arange(9), rng.integers(1, 5, 9))), 9)
    ids = rng.integers(-1, 9, (40, 3))
    chosen = physical_ids(ids, replicas, rule=rule)  # type: ignore[arg-type]  # parametrized literals
    assert chosen.dtype == np.int32
    assert np.array_equal(np.where(chosen < 0, -1, replicas.logical[chosen]), ids)


@pytest.mark.parametrize("logical", [[0, 2], [0, 1, 2, 3]], ids=["one without a copy", "one too many"])
def test_every_expert_needs_a_copy(logical: list[int]) -> None:
    with pytest.raises(UsageError, match="Each of 3 logical experts"):
        replicas_of(np.array(logical), 3)
