"""Drawn cases: the same on every run, valid, and shrinking to valid smaller ones."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moecheck.cases import Case
from moecheck.curated import OWN_ROWS, PROFILES, cases_for
from moecheck.ops import OPS
from moecheck.strategies import draw_cases, moe_cases, smaller_than

SIZES = ("num_tokens", "num_experts", "hidden_size", "intermediate_size", "shared_intermediate_size")


@pytest.mark.parametrize("small", [False, True], ids=["full size", "small"])
@pytest.mark.parametrize("op", list(OPS))
def test_the_same_seed_draws_the_same_cases(op: str, small: bool) -> None:
    first, again = (draw_cases(moe_cases(op, small=small), 8, 11) for _ in range(2))

    assert [case.id for case in first] == [case.id for case in again]
    assert len({case.id for case in first}) == 8
    assert all(Case.from_json(case.to_json()) == case for case in first)


def test_another_seed_draws_other_cases() -> None:
    one, other = ({case.id for case in draw_cases(moe_cases("moe_layer"), 8, seed)} for seed in (0, 1))

    assert one != other


def test_none_are_drawn_when_none_are_wanted() -> None:
    assert draw_cases(moe_cases("permute"), 0, 0) == []


@pytest.mark.parametrize("op", ["fused_experts", "moe_layer", "topk_routing"])
def test_drawn_cases_reach_every_kind(op: str) -> None:
    cases = draw_cases(moe_cases(op), 150, 0)

    assert {case.dtype for case in cases} == {"bf16", "fp16", "fp32"}
    assert {case.layout for case in cases} == {"contiguous", "strided"}
    assert len({case.load for case in cases}) >= 3
    assert len({case.num_experts for case in cases}) >= 4
    if op != "topk_routing":
        assert len({case.stratum for case in cases}) == 5
        assert len({case.spec.experts for case in cases}) == 8
    if op != "fused_experts":
        assert {case.spec.routing.scoring for case in cases} == {"softmax", "sigmoid", "sqrt_softplus"}
        assert any(case.spec.routing.num_expert_groups > 1 for case in cases)
        assert any(case.spec.routing.correction_bias == "select" for case in cases)


@pytest.mark.parametrize("op", list(OPS))
@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_smaller_cases_are_valid_and_no_larger(op: str, data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(cases_for(op, profile="quick", seed=0)) | moe_cases(op))
    smaller = data.draw(smaller_than(case))

    assert all(getattr(smaller, size) <= getattr(case, size) for size in SIZES)
    assert (smaller.op, smaller.spec, smaller.dtype, smaller.seed) == (case.op, case.spec, case.dtype, case.seed)
    assert Case.from_json(smaller.to_json()) == smaller
    assert smaller.inputs()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("op", list(OPS))
def test_a_runs_cases_are_distinct_and_have_reasons(op: str, profile: str) -> None:
    cases = cases_for(op, profile=profile, seed=0, examples=3)

    assert len({case.digest for case in cases}) == len(cases)
    assert all(case.reason for case in cases if case.name)
    assert sum(not case.name for case in cases) <= 3


@pytest.mark.parametrize("op", list(OPS))
def test_small_cases_are_small(op: str) -> None:
    # Its own rows are the same for every kernel: some tokens for each of four ranks, and no width in whole tiles.
    tokens, hidden = (24, 90) if op in OWN_ROWS else (16, 64 + 16)
    for case in cases_for(op, profile="nightly", seed=0, small=True, examples=4):
        assert case.num_tokens <= tokens
        assert case.hidden_size <= hidden
        assert case.intermediate_size <= 32 + 16
