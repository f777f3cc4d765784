"""The verdict on a contract: declared and done, declared and not done, hidden below the floor, forbidden."""

from __future__ import annotations

from dataclasses import replace

import pytest

import moecheck
from moecheck.checks.finding import Verdict
from moecheck.identify import below_floor, declaration_sentence, identify, judge_numerics
from moecheck.numerics import FLOOR, INPUT, Numerics
from moecheck.oracle import Oracle
from moecheck.spec import MoESpec, RoutingSpec
from tests.identify.test_identify import BIASED, EAGER, HALVES, ORACLE, case_of, found, observed
from tests.numpy_experts import experts

LOW_WEIGHTS = replace(HALVES, topk_weights=INPUT)


@pytest.mark.parametrize(
    ("numerics", "dtype", "low"),
    [
        pytest.param(FLOOR, "bf16", (), id="the floor itself"),
        pytest.param(Numerics(), "fp32", (), id="all kept"),
        pytest.param(EAGER, "fp16", ("combine",), id="added low"),
        pytest.param(replace(EAGER, combine_order="tree"), "fp16", (), id="a tree keeps fp32"),
        pytest.param(EAGER, "fp32", (), id="the input's format is fp32"),
        pytest.param(LOW_WEIGHTS, "bf16", ("topk_weights",), id="low weights"),
        pytest.param(Numerics(scores=INPUT), "bf16", ("scores",), id="low scores"),
        pytest.param(Numerics(gate_up="bf16"), "fp32", ("gate_up",), id="bf16 inside fp32"),
        pytest.param(Numerics(gate_up="bf16"), "fp16", ("gate_up",), id="bf16 is less precise than fp16"),
        pytest.param(Numerics(gate_up="fp16"), "bf16", ("gate_up",), id="fp16 has less range than bf16"),
        pytest.param(Numerics(gate_up="bf16"), "bf16", (), id="bf16 inside bf16"),
    ],
)
def test_what_is_below_the_floor(numerics: Numerics, dtype: str, low: tuple[str, ...]) -> None:
    assert below_floor(numerics, dtypes=[dtype]) == low


@pytest.mark.parametrize("numerics", [Numerics(), EAGER, Numerics(topk_weights="bf16", out=INPUT)])
def test_the_sentence_declares_the_contract(numerics: Numerics) -> None:
    sentence = declaration_sentence(numerics)

    assert eval(sentence.removeprefix("numerics="), {"moecheck": moecheck}) == numerics


@pytest.mark.parametrize(
    ("does", "declares", "verdict", "part"),
    [
        pytest.param(HALVES, HALVES, Verdict.PASS, "Stores gate/up and act(g)*u", id="declared and done"),
        pytest.param(HALVES, None, Verdict.PASS, "Stores gate/up and act(g)*u", id="not declared, at the floor"),
        pytest.param(EAGER, EAGER, Verdict.PASS, "in expert order", id="declared below the floor and done"),
        pytest.param(HALVES, EAGER, Verdict.FAIL, "Declares act(g) in the input's format", id="declared and not done"),
        pytest.param(EAGER, HALVES, Verdict.FAIL, 'combine="input"', id="more done than declared"),
        pytest.param(
            LOW_WEIGHTS,
            None,
            Verdict.FAIL,
            'declare numerics=moecheck.Numerics(topk_weights="input", gate_up="input", act_times_up="input")',
            id="low weights, hidden",
        ),
        pytest.param(LOW_WEIGHTS, HALVES, Verdict.FAIL, "routing weights in fp32", id="low weights, denied"),
        pytest.param(EAGER, None, Verdict.FAIL, "Rounds the sum over experts below the floor", id="low sum, hidden"),
    ],
)
def test_the_verdict(does: Numerics, declares: Numerics | None, verdict: Verdict, part: str) -> None:
    judgement = judge_numerics(declares, found(does, "bf16"))

    assert (judgement.check, judgement.verdict) == ("numerics", verdict)
    assert part in judgement.message
    assert judgement.numbers["known"] == 1.0
    assert judgement.numbers["runner_up_agreement"] <= judgement.numbers["agreement"] - 0.1


def test_another_16_bit_format_is_seen_by_the_outputs_that_only_one_contract_explains() -> None:
    judgement = judge_numerics(HALVES, found(replace(HALVES, act_times_up="fp16"), "bf16"))

    assert judgement.verdict is Verdict.FAIL
    assert "act(g)*u in fp16" in judgement.message


def test_fp32_kernels_that_narrow_fail() -> None:
    judgement = judge_numerics(None, found(Numerics(gate_up="bf16"), "fp32"))

    assert judgement.verdict is Verdict.FAIL
    assert 'numerics=moecheck.Numerics(gate_up="bf16")' in judgement.message


def test_contracts_that_cannot_be_told_apart_are_no_false_alarm() -> None:
    slot = replace(EAGER, combine_order="slot")
    two_slots = found(EAGER, "bf16", spec=MoESpec(routing=RoutingSpec(top_k=2, renormalize=True)))

    assert judge_numerics(slot, two_slots).verdict is Verdict.PASS
    assert judge_numerics(slot, found(EAGER, "bf16")).verdict is Verdict.FAIL
    assert judge_numerics(replace(HALVES, before_bias=INPUT), found(HALVES, "bf16")).verdict is Verdict.PASS
    assert (
        judge_numerics(replace(HALVES, before_bias=INPUT), found(HALVES, "bf16", spec=BIASED)).verdict is Verdict.FAIL
    )
    assert judge_numerics(EAGER, found(Numerics(), "fp32")).verdict is Verdict.PASS


@pytest.mark.parametrize("declares", [None, HALVES, EAGER], ids=["undeclared", "declared", "declared otherwise"])
def test_an_unknown_contract_is_left_to_the_smooth_model(declares: Numerics | None) -> None:
    judgement = judge_numerics(declares, found(HALVES, "bf16", factor=1.002))

    assert judgement.verdict is Verdict.PASS
    assert judgement.message.startswith("Contract unknown")
    assert judgement.numbers["known"] == 0.0


@pytest.mark.parametrize(
    ("does", "declares", "verdict"),
    [
        pytest.param(HALVES, HALVES, Verdict.PASS, id="met"),
        pytest.param(HALVES, None, Verdict.PASS, id="met without a declaration"),
        pytest.param(LOW_WEIGHTS, LOW_WEIGHTS, Verdict.FAIL, id="declared, but forbidden"),
        pytest.param(LOW_WEIGHTS, None, Verdict.FAIL, id="found, and forbidden"),
    ],
)
def test_a_required_format(does: Numerics, declares: Numerics | None, verdict: Verdict) -> None:
    judgement = judge_numerics(declares, found(does, "bf16"), require={"topk_weights": "fp32"})

    assert judgement.verdict is verdict
    if verdict is Verdict.FAIL:
        assert "The run requires topk_weights=fp32" in judgement.message


def test_a_requirement_that_cannot_be_shown_is_no_pass() -> None:
    unknown = found(HALVES, "bf16", factor=1.002)

    assert judge_numerics(HALVES, unknown, require={"topk_weights": "fp32"}).verdict is Verdict.INCONCLUSIVE
    assert judge_numerics(HALVES, unknown, require={"scores": "fp32"}).verdict is Verdict.PASS


def test_a_contract_that_changes_between_cases_is_judged_case_by_case() -> None:
    low = replace(HALVES, topk_weights=INPUT)
    changing = identify([*observed(HALVES, "bf16"), *observed(low, "bf16", seed=8)], ORACLE)

    assert judge_numerics(HALVES, changing).verdict is Verdict.FAIL
    assert judge_numerics(None, changing).verdict is Verdict.FAIL
    assert "changes its contract" in judge_numerics(None, changing).message


def test_honest_kernels_never_fail_under_their_own_declaration() -> None:
    oracle = Oracle()
    for seed in range(6):
        does = (HALVES, EAGER, replace(HALVES, weighted=INPUT))[seed % 3]
        case = replace(case_of(("bf16", "fp16")[seed % 2]), seed=100 + seed, num_tokens=(1, 8)[seed // 3])
        identified = identify([(case, experts(case, oracle.inputs(case), does))], oracle)
        judgement = judge_numerics(does, identified)
        assert (judgement.verdict, identified.known) == (Verdict.PASS, True), judgement.message
