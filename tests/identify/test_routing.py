"""Contracts of routers: each is found from the weights, whatever order or ties the ids come in; hidden ones fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.formats import AnyArray
from moecheck.identify import Identified, identification_cases, identify, judge_numerics, observation
from moecheck.identify.routing import UNSEEN
from moecheck.kernel import Declaration
from moecheck.kernels.torch.routing import topk_routing
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import Oracle
from moecheck.runner.contract import contract_of
from moecheck.runner.judges import Here
from moecheck.runner.worker import Outcome
from moecheck.spec import MoESpec, RoutingSpec
from tests.checks.test_routing_weights import FP32, LOW, LOW_SCORES, LOW_WEIGHTS, SIGMOID, case_of, router

ORACLE = Oracle()
DECLARATION: Declaration = topk_routing.__moecheck__  # type: ignore[attr-defined]  # set by the decorator
BF16_ALWAYS = Numerics(topk_weights="bf16", out="fp32")


def outputs(case: Case, numerics: Numerics, **how: float | bool) -> tuple[AnyArray, ...]:
    weights, ids = router(case, numerics, **how)  # type: ignore[arg-type]  # the keywords of router
    return weights.astype(np.float32), ids.astype(np.int32)


def observed(cases: Sequence[Case], numerics: Numerics, **how: float | bool) -> list[tuple[Case, AnyArray]]:
    seen = [(case, observation(case, outputs(case, numerics, **how), ORACLE)) for case in cases]
    return [(case, one) for case, one in seen if one is not None]


def found(numerics: Numerics, **how: float | bool) -> Identified:
    return identify(observed(identification_cases(DECLARATION), numerics, **how), ORACLE)


def test_a_router_is_looked_at_in_each_format_with_both_scorings() -> None:
    cases = identification_cases(DECLARATION)

    assert [(case.dtype, case.spec.routing.scoring) for case in cases] == [
        ("bf16", "softmax"),
        ("fp16", "softmax"),
        ("fp32", "softmax"),
        ("bf16", "sigmoid"),
    ]
    assert all(case.num_tokens == 64 and case.num_experts == 16 and case.spec.routing.renormalize for case in cases)


@pytest.mark.parametrize(
    ("numerics", "low_steps", "part"),
    [
        pytest.param(FP32, False, "keeps router scores in fp32, returns routing weights in fp32", id="fp32"),
        pytest.param(LOW_WEIGHTS, False, "returns routing weights rounded to the input's format", id="weights"),
        pytest.param(LOW_SCORES, False, "stores router scores in the input's format, returns routing", id="scores"),
        pytest.param(
            LOW, True, "stores router scores in the input's format, returns routing weights rounded", id="all"
        ),
        pytest.param(BF16_ALWAYS, False, "routing weights rounded to bf16", id="bf16 whatever comes in"),
    ],
)
def test_the_contract_is_found(numerics: Numerics, low_steps: bool, part: str) -> None:
    identified = found(numerics, low_steps=low_steps)

    assert identified.known
    assert (identified.numerics.scores, identified.numerics.topk_weights) == (numerics.scores, numerics.topk_weights)
    assert identified.agreement > 0.99 > identified.runner_up_agreement + 0.2
    assert part in identified.words()
    assert judge_numerics(numerics, identified).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("numerics", "name", "store"),
    [(LOW_WEIGHTS, "routing weights", "topk_weights"), (LOW_SCORES, "router scores", "scores")],
)
def test_low_stores_that_are_hidden_fail_with_their_declaration(numerics: Numerics, name: str, store: str) -> None:
    judgement = judge_numerics(None, found(numerics))

    assert judgement.verdict is Verdict.FAIL
    assert judgement.message.startswith(f"Rounds {name} below the floor")
    assert f'declare numerics=moecheck.Numerics({store}="input").' in judgement.message


@pytest.mark.parametrize(
    ("does", "declares"), [(LOW_WEIGHTS, FP32), (FP32, LOW_WEIGHTS), (LOW_SCORES, FP32), (LOW_WEIGHTS, LOW)]
)
def test_another_contract_than_declared_fails(does: Numerics, declares: Numerics) -> None:
    judgement = judge_numerics(declares, found(does))

    assert judgement.verdict is Verdict.FAIL
    assert judgement.message.startswith("Declares")


@pytest.mark.parametrize("numerics", [FP32, LOW_WEIGHTS, LOW_SCORES])
def test_no_contract_explains_a_factor(numerics: Numerics) -> None:
    assert not found(numerics, factor=1.002).known


def _reversed(weights: AnyArray, ids: AnyArray) -> None:
    weights[:], ids[:] = weights[:, ::-1].copy(), ids[:, ::-1].copy()


def _another(weights: AnyArray, ids: AnyArray) -> None:
    ids[5] = [e for e in range(16) if e not in ids[5]][: ids.shape[1]]


def test_the_runner_sees_a_hidden_contract_before_any_case() -> None:
    declaration = replace(DECLARATION, numerics=None)
    contract = contract_of(declaration, lambda case: Outcome(outputs=outputs(case, LOW_WEIGHTS)), Here(ORACLE))

    assert contract.numerics is not None
    assert contract.numerics.topk_weights == INPUT
    assert contract.judgement is not None
    assert contract.judgement.verdict is Verdict.FAIL


@pytest.mark.parametrize("change", [_reversed, _another])
def test_the_order_of_slots_and_other_choices_do_not_matter(change: Callable[[AnyArray, AnyArray], None]) -> None:
    cases = identification_cases(DECLARATION)
    observations = []
    for case in cases:
        out = outputs(case, LOW_WEIGHTS)
        change(*out)
        seen = observation(case, out, ORACLE)
        assert seen is not None
        assert (seen[5] == UNSEEN).all() == (change is _another)
        observations.append((case, seen))
    identified = identify(observations, ORACLE)

    assert (identified.known, identified.numerics.topk_weights) == (True, INPUT)
    assert identified.agreement > 0.99


def test_a_router_that_mostly_chooses_otherwise_is_not_looked_at() -> None:
    case = case_of(SIGMOID)
    weights, ids = outputs(case, FP32)

    assert observation(case, (weights, (ids + 1) % 16), ORACLE) is None


def test_scores_that_play_no_part_are_not_looked_for() -> None:
    spec = MoESpec(routing=RoutingSpec(top_k=4, softmax_over_selected=True))
    case = Case(op="topk_routing", spec=spec, num_tokens=64, num_experts=16)
    weights, ids = (np.asarray(out) for out in ORACLE.outputs(case))
    seen = observation(case, (weights.astype(np.float32), ids), ORACLE)
    assert seen is not None
    identified = identify([(case, seen)], ORACLE)

    assert identified.stores == ("topk_weights",)
    assert judge_numerics(Numerics(scores=INPUT, out="fp32"), identified).verdict is Verdict.PASS
