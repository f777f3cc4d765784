"""Whole layers with ambiguous tokens: any legal choice passes, no other does, too many choices decide nothing."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks import layer
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import Judged, Limits, judge
from moecheck.checks.legal_sets import ambiguous_rows, choice_of, legal_sets
from moecheck.formats import Float64, store
from moecheck.numerics import FLOOR, Numerics
from moecheck.oracle import Oracle
from moecheck.references.topk_routing import topk_routing, weights_of_ids
from moecheck.spec import MoESpec, RoutingSpec
from tests.checks.honest import verdict_of

TIES = Case(
    op="moe_layer", load="ties", num_experts=16, num_tokens=24, hidden_size=64, intermediate_size=32, dtype="fp32"
)
NEAR = Case(op="moe_layer", load="near_ties", num_experts=32, num_tokens=4, hidden_size=32, intermediate_size=32)


@cache
def oracle() -> Oracle:
    return Oracle()


def options(case: Case, numerics: Numerics | None = None) -> list[list[tuple[int, ...]]]:
    choice = choice_of(case, oracle().inputs(case), numerics)
    return [legal_sets(choice, t, case.spec.routing, most=17) for t in range(case.num_tokens)]


def layer_of(case: Case, sets: list[tuple[int, ...]]) -> Float64:
    inputs = oracle().inputs(case)
    ids = np.array(sets, dtype=np.int32)
    weights = weights_of_ids(router_logits=inputs["router_logits"], topk_ids=ids, spec=case.spec.routing)
    return oracle().layer_values(case, None, list(range(case.num_tokens)), (weights, ids)).true


def judged(case: Case, out: Float64, numerics: Numerics | None = None) -> Judged:
    return judge(case, (store(out, case.dtype),), oracle(), Limits(), numerics)


@pytest.mark.parametrize("nth", [0, 1, 2, -1])
def test_any_legal_choice_passes(nth: int) -> None:
    sets = [legal[min(nth, len(legal) - 1)] for legal in options(TIES)]
    result = judged(TIES, layer_of(TIES, sets))

    assert verdict_of(result) is Verdict.PASS
    assert result.judgements[-1].check == "ambiguity"
    assert result.judgements[-1].numbers["ambiguous_share"] > 0
    assert result.judgements[-1].numbers["left_out_share"] == 0


def test_tokens_may_choose_differently() -> None:
    sets = [legal[t % len(legal)] for t, legal in enumerate(options(TIES))]

    assert verdict_of(judged(TIES, layer_of(TIES, sets))) is Verdict.PASS


def test_an_illegal_choice_of_any_token_fails() -> None:
    legal = options(TIES)
    ambiguous = [t for t, sets in enumerate(legal) if len(sets) > 1]
    clear = [t for t, sets in enumerate(legal) if len(sets) == 1]
    assert ambiguous
    assert clear
    for token in (ambiguous[0], ambiguous[-1], clear[0]):
        sets = [choices[0] for choices in legal]
        sets[token] = next(s for s in ((a, b) for a in range(16) for b in range(a + 1, 16)) if s not in legal[token])
        result = judged(TIES, layer_of(TIES, sets))
        assert verdict_of(result) is Verdict.FAIL
        values = next(judgement for judgement in result.judgements if judgement.check == "values")
        assert values.where["token"] == token


def test_a_wrong_element_of_an_ambiguous_token_fails() -> None:
    legal = options(TIES)
    token = next(t for t, sets in enumerate(legal) if len(sets) > 1)
    for wrong in (np.nan, np.inf, 0.0):
        out = layer_of(TIES, [sets[0] for sets in legal])
        out[token, 3] = wrong
        assert verdict_of(judged(TIES, out)) in FAILURES


def test_half_of_one_choice_and_half_of_another_fails() -> None:
    legal = options(TIES)
    one, other = (layer_of(TIES, [sets[i % len(sets)] for sets in legal]) for i in (0, 1))
    one[:, ::2] = other[:, ::2]

    assert verdict_of(judged(TIES, one)) is Verdict.FAIL


def test_low_precision_scores_blur_the_weights_of_every_choice() -> None:
    """A declared rounding of the scores is an error of the weights, whichever choice explains the token."""
    scores = Numerics(scores="bf16")
    legal = options(TIES, scores)
    sets = [choices[-1] for choices in legal if len(choices) <= layer.MOST_SETS]
    assert len(sets) == len(legal)
    ids = np.array(sets, dtype=np.int32)
    inputs = oracle().inputs(TIES)
    weights = weights_of_ids(router_logits=inputs["router_logits"], topk_ids=ids, spec=TIES.spec.routing)
    rounded = store(weights, "bf16")
    out = oracle().layer_values(TIES, None, list(range(TIES.num_tokens)), (rounded.astype(np.float64), ids)).true

    assert verdict_of(judged(TIES, out, scores)) is Verdict.PASS
    assert verdict_of(judged(TIES, out)) is Verdict.FAIL


def test_too_many_legal_sets_decide_nothing() -> None:
    spec = MoESpec(routing=RoutingSpec(top_k=8, scoring="sigmoid"))
    case = Case(op="moe_layer", **{**_sizes(NEAR), "spec": spec})  # type: ignore[arg-type]  # Case's own fields
    values = oracle().values(case, None).true
    result = judged(case, values)

    assert all(len(sets) == 17 for sets in options(case))
    assert verdict_of(result) is Verdict.INCONCLUSIVE
    assert result.judgements[-1].verdict is Verdict.INCONCLUSIVE
    assert "PASS" not in [judgement.verdict.name for judgement in result.judgements if judgement.check == "values"]
    assert result.judgements[-1].numbers["left_out_share"] == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_token_that_is_left_out_must_be_finite(wrong: float) -> None:
    spec = MoESpec(routing=RoutingSpec(top_k=8, scoring="sigmoid"))
    case = Case(op="moe_layer", **{**_sizes(NEAR), "spec": spec})  # type: ignore[arg-type]  # Case's own fields
    out = oracle().values(case, None).true.copy()
    out[2, 5] = wrong
    result = judged(case, out)

    assert verdict_of(result) is Verdict.PROVEN_WRONG
    assert result.judgements[-1].where == {"token": 2, "column": 5}


def test_clear_tokens_need_no_word() -> None:
    case = Case(op="moe_layer", load="gapped", num_tokens=8, hidden_size=64, intermediate_size=32)
    values = oracle().values(case, FLOOR)
    found, judgement = layer.layer_values(case, values.true, oracle(), FLOOR)

    assert judgement is None
    assert found is values


def test_every_choice_is_among_those_tried() -> None:
    """The case has what the tests above need: tokens with one, two, and more legal sets."""
    counts = {len(sets) for sets in options(TIES)}
    inputs = oracle().inputs(TIES)
    _, ids = topk_routing(router_logits=inputs["router_logits"], spec=TIES.spec.routing)

    assert {1, 2} < counts
    assert ambiguous_rows(choice_of(TIES, inputs, None), TIES.spec.routing).tolist() == [
        len(sets) > 1 for sets in options(TIES)
    ]
    assert [sets[0] for sets in options(TIES)] == [tuple(sorted(row)) for row in ids.tolist()]


def _sizes(case: Case) -> dict[str, object]:
    names = ("load", "num_experts", "num_tokens", "hidden_size", "intermediate_size")
    return {name: getattr(case, name) for name in names}
