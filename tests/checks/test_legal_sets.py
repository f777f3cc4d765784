"""Legal sets against the definition, over all subsets of few experts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecheck.bounds import score_eps
from moecheck.cases import Case
from moecheck.checks.legal_sets import Choice, ambiguous_rows, choice_of, legal_rows, legal_sets
from moecheck.formats import Float64
from moecheck.numerics import Numerics
from moecheck.references.topk_routing import mask_groups, top_ids, topk_routing
from moecheck.spec import MoESpec, RoutingSpec

QUIET = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def separated(c: Float64, eps: Float64, chosen: tuple[int, ...], candidates: tuple[int, ...]) -> bool:
    """The definition: the lowest chosen score + eps is not below the highest other candidate's score - eps."""
    low = min(c[i] + eps[i] for i in chosen)
    return all(low >= c[i] - eps[i] for i in candidates if i not in chosen)


def brute_force(choice: Choice, token: int, routing: RoutingSpec) -> set[tuple[int, ...]]:
    c, eps, everyone = choice.c[token], choice.eps[token], tuple(range(choice.c.shape[1]))
    subsets = list(combinations(everyone, routing.top_k))
    if choice.group is None or choice.group_eps is None:
        return {ids for ids in subsets if separated(c, eps, ids, everyone)}
    groups = tuple(range(routing.num_expert_groups))
    width, found = len(everyone) // len(groups), set()
    for kept in combinations(groups, routing.topk_groups):
        if not separated(choice.group[token], choice.group_eps[token], kept, groups):
            continue
        inside = tuple(i for i in everyone if i // width in kept)
        if routing.group_mask == "neg_inf":
            found |= {ids for ids in subsets if set(ids) <= set(inside) and separated(c, eps, ids, inside)}
        else:
            masked = [(c[i], eps[i]) if i in inside else (0.0, 0.0) for i in everyone]
            values, widths = (np.array(column) for column in zip(*masked, strict=True))
            found |= {ids for ids in subsets if separated(values, widths, ids, everyone)}
    return found


@st.composite
def choices(draw: st.DrawFn) -> tuple[Choice, RoutingSpec]:
    """Scores on a grid of a few steps, with eps of the size of the steps, not the same for all experts."""
    groups = draw(st.sampled_from((1, 1, 2, 3, 4)))
    E = groups * draw(st.integers(2, 8 // groups))
    topk_groups = draw(st.integers(1, groups))
    routing = RoutingSpec(
        top_k=draw(st.integers(1, min(4, E // groups * topk_groups))),
        num_expert_groups=groups,
        topk_groups=topk_groups,
        group_score=draw(st.sampled_from(("max", "top2_sum"))),
        group_mask=draw(st.sampled_from(("neg_inf", "zero"))),
    )
    row = st.lists(st.integers(-3, 6), min_size=E, max_size=E)
    c = np.array([draw(row), draw(row)], dtype=np.float64)
    eps = np.array([draw(row), draw(row)], dtype=np.float64).clip(0, 3) * draw(st.sampled_from((0.0, 0.25, 0.5, 1.0)))
    if groups == 1:
        return Choice(c=c, eps=eps, group=None, group_eps=None), routing
    split = np.sort(c.reshape(2, groups, -1), axis=-1)
    group = split[..., -1] if routing.group_score == "max" else split[..., -2:].sum(axis=-1)
    return Choice(c=c, eps=eps, group=group, group_eps=eps.reshape(2, groups, -1).max(axis=-1)), routing


@QUIET
@given(choices())
def test_legal_sets_are_those_of_the_definition(drawn: tuple[Choice, RoutingSpec]) -> None:
    choice, routing = drawn
    for token in range(2):
        found = legal_sets(choice, token, routing, most=1000)
        assert set(found) == brute_force(choice, token, routing)
        assert len(set(found)) == len(found)
        assert all(tuple(sorted(ids)) == ids for ids in found)


@QUIET
@given(choices())
def test_legal_rows_are_those_of_the_definition(drawn: tuple[Choice, RoutingSpec]) -> None:
    choice, routing = drawn
    allowed = [brute_force(choice, token, routing) for token in range(2)]
    for ids in combinations(range(choice.c.shape[1]), routing.top_k):
        got = legal_rows(choice, np.array([ids[::-1], ids]), routing)
        assert got.tolist() == [ids in sets for sets in allowed]


@QUIET
@given(choices())
def test_ambiguous_rows_have_more_than_one_legal_set(drawn: tuple[Choice, RoutingSpec]) -> None:
    choice, routing = drawn

    assert ambiguous_rows(choice, routing).tolist() == [
        len(brute_force(choice, token, routing)) > 1 for token in range(2)
    ]


@QUIET
@given(choices())
def test_the_references_choice_is_legal_and_comes_first(drawn: tuple[Choice, RoutingSpec]) -> None:
    choice, routing = drawn
    own = top_ids(mask_groups(choice.c, spec=routing), routing.top_k)

    assert legal_rows(choice, own, routing).all()
    assert legal_sets(choice, 0, routing, most=1) == [tuple(sorted(own[0].tolist()))]


@QUIET
@given(choices(), st.data())
def test_a_strictly_worse_expert_is_never_legal(drawn: tuple[Choice, RoutingSpec], data: st.DataObject) -> None:
    """Without groups: replace a chosen expert by one whose score + eps lies below a left out one's score - eps."""
    choice, routing = drawn
    if choice.group is not None:
        return
    low, high = choice.c[0] - choice.eps[0], choice.c[0] + choice.eps[0]
    for worse in range(len(low)):
        better = [i for i in range(len(low)) if low[i] > high[worse]]
        if len(better) >= routing.top_k:
            rest = data.draw(st.permutations([i for i in range(len(low)) if i != worse]))[: routing.top_k - 1]
            ids = np.array([[worse, *rest]] * 2)
            assert not legal_rows(choice, ids, routing)[0]


def test_at_most_the_wanted_number_is_listed() -> None:
    tied = np.zeros((1, 64))
    choice = Choice(c=tied, eps=tied, group=None, group_eps=None)

    assert len(legal_sets(choice, 0, RoutingSpec(top_k=8), most=17)) == 17


def test_no_set_reaches_outside_its_groups_even_among_switched_off_experts() -> None:
    c = np.array([[1.0, -np.inf, 0.5, 0.25]])
    routing = RoutingSpec(top_k=2, num_expert_groups=2, topk_groups=1)
    choice = Choice(c=c, eps=np.zeros((1, 4)), group=np.array([[1.0, 0.5]]), group_eps=np.zeros((1, 2)))

    assert legal_sets(choice, 0, routing, most=9) == [(0, 1)]
    assert legal_rows(choice, np.array([[0, 1]]), routing).all()
    assert not legal_rows(choice, np.array([[0, 2]]), routing).any()


def chosen(routing: RoutingSpec, *, load: str = "random", numerics: Numerics | None = None) -> Choice:
    case = Case(op="topk_routing", dtype="bf16", num_experts=16, load=load, spec=MoESpec(routing=routing))
    return choice_of(case, case.inputs(), numerics)


def test_scores_that_are_given_have_no_eps() -> None:
    assert not chosen(RoutingSpec(softmax_over_selected=True)).eps.any()
    assert chosen(RoutingSpec(softmax_over_selected=True, softcap=30.0)).eps.all()
    assert chosen(RoutingSpec(scoring="sigmoid")).eps.all()


def test_eps_is_that_of_the_declared_scores() -> None:
    exact, low = (chosen(RoutingSpec(scoring="sigmoid"), numerics=Numerics(scores=s)) for s in ("fp32", "bf16"))

    np.testing.assert_array_equal(exact.eps, score_eps(exact.c, 0.0, "fp32"))
    np.testing.assert_array_equal(low.eps, score_eps(low.c, 0.0, "bf16"))
    assert (low.eps > 2**14 * exact.eps).all()


def test_a_bias_widens_eps_by_its_size_and_not_by_the_sum() -> None:
    eps = score_eps(np.array([0.5, 2.0]), np.array([-8.0, 1.0]), "fp32")

    assert eps.tolist() == score_eps(np.array([8.0, 2.0]), 0.0, "fp32").tolist()


@pytest.mark.parametrize("load", ["random", "gapped", "ties", "near_ties", "extreme", "negative"])
@pytest.mark.parametrize("mask", ["neg_inf", "zero"])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_references_own_ids_are_legal_on_every_load(load: str, mask: str, groups: int) -> None:
    routing = RoutingSpec(
        top_k=4,
        scoring="sigmoid",
        num_expert_groups=groups,
        topk_groups=min(2, groups),
        group_mask=mask,  # type: ignore[arg-type]  # a parametrized literal
    )
    case = Case(op="topk_routing", num_experts=16, load=load, spec=MoESpec(routing=routing))
    _, ids = topk_routing(**case.inputs(), spec=routing)
    choice = choice_of(case, case.inputs(), None)

    assert legal_rows(choice, ids, routing).all()
    assert load != "gapped" or not ambiguous_rows(choice, routing).any()
    assert load != "ties" or ambiguous_rows(choice, routing).any()


def test_a_large_bias_widens_the_eps_of_its_expert() -> None:
    """Choice scores are rounded at the size of the bias, even where score and bias cancel."""
    routing = RoutingSpec(top_k=4, scoring="sigmoid", correction_bias="select")
    case = Case(op="topk_routing", dtype="fp32", num_experts=16, spec=MoESpec(routing=routing))
    bias = case.inputs()["correction_bias"].astype(np.float64)
    choice = choice_of(case, case.inputs(), None)

    np.testing.assert_array_equal(choice.eps, score_eps(choice.c - bias, bias[None], "fp32"))
    assert (choice.eps[:, 0] == choice_of_size(1.5)).all()
    assert (choice.eps[:, -1] == choice_of_size(2.5)).all()


def choice_of_size(size: float) -> float:
    return float(score_eps(np.array(size), 0.0, "fp32"))
