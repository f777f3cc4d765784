"""The diagnosis of a router's ids and weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from moecheck.diagnosis import Diagnosis, diagnose
from moecheck.mutants import all_mutants, mutated_outputs
from moecheck.oracle import Oracle
from tests.mutants.small_cases import BIASED, GROUPED, TOP4, case

PLAIN = case("topk_routing", TOP4, dtype="fp32")
Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


@cache
def oracle() -> Oracle:
    return Oracle()


def right() -> Outputs:
    weights, ids = oracle().outputs(PLAIN)
    return weights.astype(np.float32), ids.copy()


def known(outputs: Outputs) -> Diagnosis:
    found = diagnose(PLAIN, outputs, oracle(), None)
    assert found is not None
    return found


@pytest.mark.parametrize("order", ["as chosen", "reversed"])
def test_the_order_of_slots_is_free(order: str) -> None:
    weights, ids = right()
    step = 1 if order == "as chosen" else -1
    assert diagnose(PLAIN, (weights[:, ::step], ids[:, ::step]), oracle(), None) is None


@pytest.mark.parametrize(
    ("name", "routing", "sentence"),
    [
        (
            "bias_ignored",
            BIASED,
            "looks like: the correction bias is ignored (vllm-project/vllm#21586); all ids and weights agree with it",
        ),
        ("groups_ignored", GROUPED, "looks like: the expert groups are ignored (vllm-project/vllm#49982)"),
        (
            "biased_scores_as_weights",
            BIASED,
            "looks like: the biased scores, meant for the choice only, serve as weights",
        ),
        ("drop_r", BIASED, "looks like: the routed scaling factor is missing (sgl-project/sglang#8511)"),
    ],
)
def test_the_sentence(name: str, routing: object, sentence: str) -> None:
    which = case("topk_routing", routing, dtype="fp32")  # type: ignore[arg-type]  # a RoutingSpec
    one = next(m for m in all_mutants() if m.id == name)
    found = diagnose(which, mutated_outputs(one, which, oracle(), None), oracle(), None)

    assert found is not None
    assert found.hypothesis == name
    assert found.sentence.startswith(sentence)
    assert (found.issue is None) == (not one.sources)


def test_a_factor_is_fitted() -> None:
    weights, ids = right()
    found = known((weights * np.float32(1.05), ids))
    assert found.hypothesis == "factor"
    assert "the weights are 1.05" in found.sentence
    assert found.location == "20 of 20 tokens are wrong, all with the right experts and other weights."


def test_another_normalisation_is_recognised() -> None:
    weights, ids = right()
    own = np.linspace(0.5, 0.9, 20, dtype=np.float32)[:, None]
    found = known((weights * own, ids))
    assert found.hypothesis == "token_factor"
    assert "a factor of its own, 0.5 to 0.9: another normalisation" in found.sentence


def test_one_tokens_factor_is_named_with_its_digits() -> None:
    weights, ids = right()
    weights[7] *= np.float32(1.0001)
    found = known((weights, ids))
    assert found.hypothesis == "row_factor"
    assert "the weights are 1.0001 times those of token 7, and those of the other tokens are right" in found.sentence


def test_factors_that_differ_little_are_shown_apart() -> None:
    weights, ids = right()
    own = np.linspace(1.0001, 1.0002, 20, dtype=np.float32)[:, None]
    assert "a factor of its own, 1.0001 to 1.0002: another" in known((weights * own, ids)).sentence


def test_zero_and_exchanged_rows_are_named() -> None:
    weights, ids = right()
    zero = weights.copy()
    zero[[4, 9]] = 0
    assert "tokens 4, 9 have weights that are all zero" in known((zero, ids)).sentence
    assert known((zero, ids)).location.startswith("Wrong: tokens 4, 9, all with the right experts")

    order = np.arange(20)
    order[[4, 9]] = 9, 4
    found = known((weights[order], ids[order]))
    assert found.hypothesis == "2_tokens_swapped"
    assert "tokens 4, 9 are exchanged with each other" in found.sentence
    order[[4, 9]] = 3, 8
    assert "tokens 4, 9 hold those of token 3 and so on" in known((weights[order], ids[order])).sentence


def test_an_expert_that_is_never_chosen_is_named() -> None:
    weights, ids = right()
    ids[ids == ids[0, 0]] = 99
    found = known((weights, ids))
    assert found.hypothesis is None
    assert f"all of these lack expert {right()[1][0, 0]}; all of these have expert 99 instead" in found.location


def test_noise_is_no_known_bug() -> None:
    weights, ids = right()
    noisy = weights * (1 + 0.3 * np.random.default_rng(0).random(weights.shape, dtype=np.float32))
    found = known((noisy, ids))
    assert found.hypothesis is None
    assert found.sentence.startswith("no known bug explains it")


def test_a_bug_with_some_noise_is_the_closest() -> None:
    weights, ids = right()
    noisy = 2.5 * weights * (1 + 0.01 * np.random.default_rng(0).random(weights.shape, dtype=np.float32))
    found = known((noisy.astype(np.float32), ids))
    assert found.hypothesis is None
    assert found.also
    assert "closest: " in found.sentence


def test_nothing_is_said_where_all_tokens_tie_or_shapes_differ() -> None:
    ties = case("topk_routing", TOP4, load="near_ties", dtype="fp32")
    weights, ids = oracle().outputs(ties)
    assert diagnose(ties, (np.zeros_like(weights, dtype=np.float32), ids), oracle(), None) is None
    assert diagnose(PLAIN, (right()[0][:, :3], right()[1][:, :3]), oracle(), None) is None
