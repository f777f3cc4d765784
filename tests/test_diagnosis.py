"""The diagnosis names the bug of an output that a mutant made, and nothing for a right one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.judge import STRUCTURE_OPS
from moecheck.checks.legal_sets import ambiguous_rows, choice_of
from moecheck.curated import cases_for
from moecheck.diagnosis import Diagnosis, best_case_for_diagnosis, diagnose, search
from moecheck.diagnosis.parts import parts_of
from moecheck.formats import AnyArray, Float64, store
from moecheck.mutants import Mutant, all_mutants, mutated_outputs
from moecheck.mutants.call import call_of, value
from moecheck.mutants.shared import routed_only, shared_only
from moecheck.numerics import FLOOR, Numerics
from moecheck.oracle import Oracle
from moecheck.spec import RoutingSpec
from tests.checks.honest import honest_outputs
from tests.mutants.small_cases import CASES, FACTOR, TOP4, case

STORES = Numerics(gate_up="input", act_times_up="input", per_expert="input")
SHARED = case("moe_layer", FACTOR, shared_experts="ungated")
PLAIN = case("fused_experts", TOP4)


@cache
def oracle() -> Oracle:
    return Oracle()


def mutant(name: str) -> Mutant:
    return next(m for m in all_mutants() if m.id == name)


def rounded(which: Case, numerics: Numerics = STORES) -> Float64:
    """A right kernel's output under a contract, float64."""
    return oracle().values(which, numerics).rounded


def of(which: Case, out: Float64, numerics: Numerics | None = None) -> Diagnosis | None:
    return diagnose(which, (store(out, which.dtype),), oracle(), numerics)


def known(which: Case, out: Float64, numerics: Numerics | None = None) -> Diagnosis:
    found = of(which, out, numerics)
    assert found is not None
    return found


def test_the_sentence_names_bug_issue_and_numbers() -> None:
    outputs = mutated_outputs(mutant("w_sh=1/r"), SHARED, oracle(), STORES)
    found = diagnose(SHARED, outputs, oracle(), STORES)

    assert found is not None
    assert found.sentence.startswith(
        "looks like: shared expert weighted 1/r instead of 1 (vllm-project/vllm#28540); residual rms z "
    )
    assert found.sentence.endswith(f"against {found.rms_z_reference:.3g} for the reference.")
    assert (found.hypothesis, found.issue) == ("w_sh=1/r", "vllm-project/vllm#28540")
    assert 0.5 < found.rms_z < 1.5
    assert found.rms_z_reference > 20
    assert found.words() == f"{found.sentence} The error is spread over all tokens and columns."


@pytest.mark.parametrize("op", [op for op in CASES if op not in STRUCTURE_OPS])
@pytest.mark.parametrize("numerics", [None, FLOOR, STORES], ids=["undeclared", "floor", "stores"])
def test_a_right_output_has_no_diagnosis(op: str, numerics: Numerics | None) -> None:
    for which in CASES[op][:2]:
        outputs: tuple[AnyArray, ...]
        if op == "topk_routing":
            outputs = honest_outputs(which, oracle())
        else:
            outputs = (store(rounded(which, numerics or FLOOR), which.dtype),)
        assert diagnose(which, outputs, oracle(), numerics) is None, which.id


@pytest.mark.parametrize("op", ["permute", "align_block_size", "problem_sizes", "shuffle_rows"])
def test_structures_have_no_diagnosis(op: str) -> None:
    assert diagnose(Case(op=op), honest_outputs(Case(op=op), oracle()), oracle(), None) is None


def test_nothing_is_said_without_tokens_or_of_another_shape() -> None:
    empty = case("fused_experts", num_tokens=0)
    assert of(empty, np.zeros((0, 72))) is None
    assert of(PLAIN, np.zeros((20, 71))) is None


@pytest.mark.parametrize("factor", [1.05, 0.3, 1.01])
def test_a_fitted_factor_comes_with_its_error(factor: float) -> None:
    found = known(PLAIN, factor * rounded(PLAIN))
    assert found.hypothesis == "factor"
    fitted, _, error = found.sentence.split("the output is ")[1].split(" times")[0].partition(" ± ")
    assert abs(float(fitted) - factor) <= 5 * float(error)
    assert float(error) < 0.002


def test_a_slight_factor_is_seen_where_the_contract_is_known() -> None:
    """1.002 moves no element by two standard deviations; the slope against the rounded reference shows it."""
    which = case("fused_experts", TOP4, num_tokens=64)
    right = rounded(which, replace(STORES, out="fp32"))
    found = known(which, right * 1.002, STORES)
    assert found.hypothesis == "factor"
    assert found.rms_z_reference < 1.5
    assert of(which, right, STORES) is None


def test_a_factor_on_one_part_of_a_layer_is_named_as_such() -> None:
    call = call_of(SHARED, oracle())
    routed, shared = value(routed_only(call)), value(shared_only(call))

    assert known(SHARED, 1.3 * routed + shared).hypothesis == "routed_factor"
    assert known(SHARED, routed + 1.3 * shared).hypothesis == "shared_factor"
    assert "the shared experts' part is 1.299" in known(SHARED, routed + 1.2995 * shared).sentence


def test_experts_that_are_dropped_or_scaled_are_named() -> None:
    parts = parts_of(call_of(PLAIN, oracle()))
    assert parts is not None
    right = rounded(PLAIN)

    for experts in ([3], [1, 6]):
        found = known(PLAIN, right - sum(parts.of_expert(e) for e in experts))
        assert found.hypothesis == "expert_dropped"
        text = "expert 3 contributes nothing" if len(experts) == 1 else "experts 1, 6 contribute nothing"
        assert text in found.sentence
    found = known(PLAIN, right + 0.5 * parts.of_expert(2))
    assert found.hypothesis == "expert_factor"
    assert "expert 2 contributes 1.50" in found.sentence


def test_other_weights_are_recognised_as_such() -> None:
    """No known bug, yet the experts' outputs are right: the weights that were applied are read from the output."""
    parts = parts_of(call_of(PLAIN, oracle()))
    assert parts is not None
    ratio = np.linspace(0.7, 1.3, 80).reshape(4, 20, 1)
    ratio[1, 5] = 3.0
    found = known(PLAIN, (ratio * parts.slots).sum(axis=0))
    weight = parts.weights[5, 1]

    assert found.hypothesis == "other_weights"
    applied, _, right = found.sentence.split("token 5, slot 1 weighs ")[1].split(";")[0].partition(" instead of ")
    shown = 10.0**-3  # of a number that is printed with so many digits
    assert abs(float(applied) - 3 * weight) <= 3 * weight * shown
    assert abs(float(right) - weight) <= weight * shown


def test_single_slots_that_are_lost_are_counted() -> None:
    parts = parts_of(call_of(PLAIN, oracle()))
    assert parts is not None
    right = rounded(PLAIN)
    held = np.argwhere(parts.weights > 0.05)
    chosen = held[np.unique(held[:, 0], return_index=True)[1]][[2, 9]]
    for token, slot in chosen:
        right = right.copy()
        right[token] -= parts.slots[slot, token]
    found = known(PLAIN, right)
    token, slot = chosen[0]

    assert found.hypothesis == "slot_lost"
    assert f"2 of 80 slots are lost, first that of token {token}, slot {slot}, expert " in found.sentence


def test_rows_are_told_apart() -> None:
    right = rounded(PLAIN)
    zero, swapped, repeated, poisoned = (right.copy() for _ in range(4))
    zero[[4, 7]] = 0
    swapped[[4, 7]] = right[[7, 4]]
    repeated[4] = right[3]
    poisoned[[2, 5]] = np.nan
    poisoned[9, 3] = np.inf

    assert "tokens 4, 7 are zero: lost or never written" in known(PLAIN, zero).sentence
    assert "tokens 4, 7 are exchanged with each other" in known(PLAIN, swapped).sentence
    assert known(PLAIN, swapped).hypothesis == "2_tokens_swapped"
    assert "token 4 holds other tokens' values: token 4 those of token 3" in known(PLAIN, repeated).sentence
    found = known(PLAIN, poisoned)
    assert found.hypothesis == "nan_rows"
    assert "145 of 1440 elements are NaN or Inf; they are in tokens 2, 5, 9" in found.sentence
    assert "tokens 2, 5" in found.location


def test_a_part_of_the_output_that_was_never_written() -> None:
    right = rounded(PLAIN)
    columns, tile = right.copy(), right.copy()
    columns[:, 64:] = 0
    tile[16:, 64:] = 0

    found = known(PLAIN, columns)
    assert found.hypothesis == "last_col_stale"
    assert found.location == "100% of the error is in columns 64 to 71 (the tail beyond the last full tile of 64)."
    found = known(PLAIN, tile)
    assert found.hypothesis == "unwritten"
    assert "tokens 16 to 19" in found.location
    assert "columns 64 to 71" in found.location


def test_nothing_but_nan() -> None:
    found = known(PLAIN, np.full((20, 72), np.nan))
    assert found.hypothesis == "nan_rows"
    assert "1440 of 1440 elements are NaN or Inf" in found.sentence


def test_nan_in_a_token_with_several_right_outputs() -> None:
    """No choice of experts explains it, although the token has no single right output."""
    which = case("moe_layer", load="ties", dtype="fp32")
    choice = choice_of(which, oracle().inputs(which), None)
    token = int(np.flatnonzero(ambiguous_rows(choice, which.spec.routing))[0])
    out = rounded(which).copy()
    out[token] = np.nan
    found = known(which, out)

    assert found.hypothesis == "nan_rows"
    assert found.sentence == "looks like: 1 of 20 tokens hold NaN or Inf; the other elements are right."


def test_nan_beside_another_bug() -> None:
    """Rows that are not finite do not hide what is wrong with the others."""
    (out,) = mutated_outputs(mutant("swap_gate_up"), PLAIN, oracle(), STORES)
    out[3] = np.nan
    found = diagnose(PLAIN, (out,), oracle(), None)

    assert found is not None
    assert found.hypothesis == "swap_gate_up"
    assert found.also == ("nan_rows",)
    assert found.sentence.startswith("1 of 20 tokens hold NaN or Inf; the others look like: gate and up are exchanged")


def test_nan_beside_something_unknown() -> None:
    out = np.random.default_rng(0).normal(size=(20, 72))
    out[3] = np.nan
    found = known(PLAIN, out)
    assert found.hypothesis is None
    assert found.sentence == "1 of 20 tokens hold NaN or Inf, and no known bug explains the others."


def test_what_no_bug_explains_is_said_so() -> None:
    found = known(PLAIN, np.random.default_rng(0).normal(size=(20, 72)))
    assert (found.hypothesis, found.issue, found.also) == (None, None, ())
    assert found.sentence.startswith("no known bug explains it (rms z ")


def test_a_bug_that_explains_most_is_the_closest() -> None:
    (out,) = mutated_outputs(mutant("swap_gate_up"), PLAIN, oracle(), STORES)
    rough = out.astype(np.float64) * (1 + 0.03 * np.random.default_rng(0).normal(size=out.shape))
    found = known(PLAIN, rough)

    assert found.hypothesis is None
    assert found.also == ("swap_gate_up",)
    assert "closest: gate and up are exchanged, which removes 99." in found.sentence


def test_equal_hypotheses_are_all_named() -> None:
    """Two slots: reversing the weights is sorting them where each token's first id is the larger one."""
    which = case("moe_layer", RoutingSpec(top_k=1, scoring="sigmoid"), dtype="fp32")
    outputs = mutated_outputs(mutant("weights_ignored"), which, oracle(), STORES)
    found = diagnose(which, outputs, oracle(), None)

    assert found is not None
    assert found.hypothesis == "renorm_flip"
    assert "weights_ignored" in found.also
    assert found.sentence.split(";")[-2].endswith("equal on this case")


def test_a_bug_that_changes_nothing_here_is_no_equal() -> None:
    """Every expert has rows: counting empty ones makes no difference."""
    found = known(PLAIN, 1.05 * rounded(PLAIN))
    assert "empty experts" not in found.sentence
    assert found.also == ()


def test_a_large_case_gets_fitted_hypotheses_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "LARGEST", 1000)
    assert known(PLAIN, 1.05 * rounded(PLAIN)).hypothesis == "factor"
    (out,) = mutated_outputs(mutant("swap_gate_up"), PLAIN, oracle(), STORES)
    found = diagnose(PLAIN, (out,), oracle(), None)
    assert found is not None
    assert found.sentence.startswith("this case is too large to try the known bugs on")


def test_tokens_with_several_right_outputs_do_not_count() -> None:
    which = case("moe_layer", TOP4, load="ties", num_experts=8, dtype="fp32")
    assert of(which, rounded(which)) is None
    assert of(replace(which, load="near_ties"), np.zeros((20, 72))) is None  # no token has a single right output


def test_the_plain_case_says_most() -> None:
    cases = cases_for("fused_experts", profile="quick", seed=0)
    best = best_case_for_diagnosis(cases)

    assert (best.stratum, best.load, best.num_local_experts) == ("random", "random", None)
    assert best.num_tokens >= 64
    assert best.hidden_size >= 256
    assert best_case_for_diagnosis(cases[3:5]) in cases[3:5]
