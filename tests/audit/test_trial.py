"""A criterion tried on a call: right outputs, zeros, NaN, and known bugs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moecheck.audit import PRESETS, Criterion, audit, audit_presets
from moecheck.audit.honest import contracts_of, right_outputs, variants_of
from moecheck.audit.run import Task, _one
from moecheck.audit.subject import Subject, subject_of
from moecheck.audit.trial import BLANKS, Trial, examine
from moecheck.cases import Case
from moecheck.errors import UsageError
from moecheck.formats import to_float64
from moecheck.mutants import mutants_for
from moecheck.spec import MoESpec, RoutingSpec

SMALL = Case(op="fused_experts", num_tokens=12, num_experts=4, hidden_size=48, intermediate_size=32)
VLLM = PRESETS["vllm-fused-moe"]
TINY = VLLM.subject(VLLM.settings[0], 0)  # one token, H = I = 128: outputs of a few thousandths
NOTHING, ANYTHING = Criterion(atol=0.0, rtol=0.0), Criterion(atol=1e9)
USUAL = Criterion(atol=2e-2, rtol=0.0)


@pytest.fixture(scope="module")
def own() -> Trial:
    return examine(subject_of(SMALL), [USUAL, NOTHING, ANYTHING])


@pytest.fixture(scope="module")
def tiny() -> Trial:
    return examine(TINY, [USUAL])


def test_zeros_pass_where_outputs_are_small_and_not_elsewhere(own: Trial, tiny: Trial) -> None:
    assert tiny.largest < USUAL.room(np.zeros(1))[0]
    assert tiny.blanks["zeros"] == (True,)
    assert own.blanks["zeros"] == (False, False, True)


def test_nan_passes_only_where_a_share_may_be_wrong() -> None:
    subject = subject_of(replace(SMALL, num_tokens=40))
    shares = [Criterion(atol=1e9, share=share) for share in (1.0, 0.99, 0.9)]
    blanks = examine(subject, [*shares, Criterion(atol=1e9, share=0.9, not_finite="reject")]).blanks
    assert set(blanks) == set(BLANKS)
    assert blanks["one NaN"] == (False, True, True, False)  # one of 40 x 48 elements
    assert blanks["a row of NaN"] == (False, False, True, False)  # one row of 40
    assert blanks["all NaN"] == (False, False, False, False)


def test_right_outputs_are_accepted_unless_no_error_is_allowed(own: Trial, tiny: Trial) -> None:
    assert own.honest == 6
    assert own.refused[0] == own.refused[2] == 0
    assert own.refused[1] > 0
    assert (own.false_alarms, tiny.false_alarms, tiny.refused) == (0, 0, (0,))


def test_a_criterion_that_allows_nothing_sees_all_bugs_and_one_that_allows_anything_none(own: Trial) -> None:
    assert len(own.mutants) > 30
    assert all(not one.accepted[1] for one in own.mutants)
    poisons = {one.mutant for one in own.mutants if not one.accepted[2]}
    assert "nan_rows" in poisons  # NaN is more than 1e9 off
    assert len(poisons) < 4


def test_moecheck_sees_them_on_its_own_inputs(own: Trial) -> None:
    assert {one.mutant for one in own.mutants if not one.seen} <= {"sigmoid_by_tanh"}  # right but for the last bits


def test_small_inputs_hide_bugs_from_a_tolerance_but_not_from_statistics(tiny: Trial) -> None:
    accepted = {one.mutant for one in tiny.mutants if one.accepted[0]}
    assert {"swap_gate_up", "expert_dropped", "all_zeros", "wrong_expert"} & accepted >= {"swap_gate_up", "all_zeros"}
    seen = {one.mutant for one in tiny.mutants if one.seen}
    assert {"swap_gate_up", "expert_dropped"} <= seen


def test_bugs_that_change_no_bit_are_not_counted() -> None:
    """One slot weighs the same in whichever order; every other bug of the list changes something or is named here."""
    subject = subject_of(replace(SMALL, spec=MoESpec(routing=RoutingSpec(top_k=1, renormalize=True)), op="moe_layer"))
    trial = examine(subject, [USUAL])
    names = {one.id for one in mutants_for(subject.case, subject.contract)}
    assert {one.mutant for one in trial.mutants} | set(trial.equal) | set(trial.untried) == names
    assert not {one.mutant for one in trial.mutants} & set(trial.equal)
    assert "renorm_flip" not in trial.equal  # without the division the weight is a softmax's
    assert trial.equal


def test_sigmas_are_the_tolerance_over_the_error_models_sigma(own: Trial) -> None:
    subject = subject_of(SMALL)
    sigma = subject.oracle.values(SMALL, subject.contract).sigma
    found = own.sigmas[0]
    assert found is not None
    assert found.median == np.median(2e-2 / sigma)
    assert 2e-2 / sigma.max() <= found.low <= found.median <= found.high <= 2e-2 / sigma.min()


def test_sigmas_of_a_global_limit_are_a_ratio_of_norms() -> None:
    subject = subject_of(SMALL)
    values = subject.oracle.values(SMALL, subject.contract)
    found = examine(subject, [Criterion(max_relative_l2=0.125)]).sigmas[0]
    assert found is not None
    share = np.sqrt(np.sum(values.sigma**2) / np.sum(values.true**2))
    assert found.low == found.high == 0.125 / share


def test_a_requantising_kernels_right_outputs_requantise_too() -> None:
    preset = PRESETS["vllm-block-fp8"]
    subject = preset.subject(preset.settings[0], 0)
    assert all(contract.requantises for contract in contracts_of(subject))
    trial = examine(subject, [preset.criterion])
    assert (trial.refused, trial.false_alarms) == ((0,), 0)
    assert trial.untried  # bare values, which nobody can requantise afterwards
    assert {"scale_half(2x)", "max_240"} <= {one.mutant for one in trial.mutants if one.seen}
    assert not {one.mutant for one in trial.mutants} & set(trial.untried)


@pytest.mark.parametrize(("dtype", "distinct"), [("bf16", 3), ("fp32", 2)])
def test_variants_of_a_kernel_differ_in_bits(dtype: str, distinct: int) -> None:
    """By where they store in bf16, and by the order of their sums in fp32."""
    subject = subject_of(replace(SMALL, dtype=dtype))
    outputs = [to_float64(right_outputs(subject, variant)[0]) for variant in variants_of(subject)]
    assert len({array.tobytes() for array in outputs}) >= distinct


def test_a_routers_weights_and_ids_are_tried() -> None:
    preset = PRESETS["vllm-grouped-topk"]
    trial = examine(preset.subject(preset.settings[-1], 0), [preset.criterion])
    assert trial.sigmas == (None,)
    assert (trial.refused, trial.false_alarms) == ((0,), 0)
    caught = {one.mutant for one in trial.mutants if not one.accepted[0]}
    assert "second_best" in caught


def test_an_audit_of_a_case_counts_over_seeds() -> None:
    record = audit(USUAL, SMALL, seeds=2)
    assert record.seeds == 2
    assert record.honest == 12
    assert record.counts
    assert record.accepts("zeros") == 0
    assert {one.seeds for one in record.mutants} <= {1, 2}
    assert not set(record.unseen) - {"sigmoid_by_tanh"}
    by_name = {one.mutant: one for one in record.mutants}
    assert by_name["all_zeros"].by_test
    assert by_name["all_zeros"].by_moecheck
    assert not record.own


def test_an_audit_of_a_preset_adds_moechecks_own_inputs() -> None:
    (record,) = audit_presets([replace(PRESETS["liger-fp32"], settings=PRESETS["liger-fp32"].settings[:1])], seeds=1)
    assert record.own
    assert record.own_honest > 0
    assert record.own_false_alarms == 0
    assert set(record.passing) >= {"tf32"}
    assert "tf32" not in record.unseen
    assert record.to_json()["passing"] == record.passing


def test_a_false_alarm_is_told() -> None:
    record = audit(NOTHING, SMALL, seeds=1)
    assert not record.counts
    assert record.refused > 0


def test_processes_find_the_same() -> None:
    alone, together = (audit(USUAL, SMALL, seeds=2, jobs=jobs) for jobs in (1, 2))
    assert alone == together
    assert _one(Task(subject=subject_of(SMALL), criteria=(USUAL,))) == examine(subject_of(SMALL), [USUAL])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        pytest.param(replace(SMALL, num_tokens=0), "num_tokens=0", id="no tokens"),
        pytest.param(Case(op="permute"), "op=permute cannot be audited", id="an op that moves rows"),
    ],
)
def test_what_cannot_be_audited_is_said(case: Case, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        audit(USUAL, case, seeds=1)
    with pytest.raises(UsageError, match="seeds=0"):
        audit(USUAL, SMALL, seeds=0)


def test_a_subject_with_a_reference_of_its_own_is_compared_with_that() -> None:
    preset = PRESETS["deepgemm-fp8"]
    subject = preset.subject(preset.settings[1], 0)
    assert isinstance(subject, Subject)
    unquantised = subject.expected_inputs
    assert unquantised is not None
    assert not np.array_equal(unquantised(subject.case)["x"], subject.inputs["x"])
    trial = examine(subject, [preset.criterion, Criterion(max_calc_diff=1e-5)])
    assert trial.refused == (0, trial.honest)  # fp8 operands are far from the bf16 product
