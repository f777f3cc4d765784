"""Each named case shows the fault that its reason names: a wrong rule must change what the case expects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.curated import COMPILED_SHAPES, INTERPRETED_CASES, cases_for, few_shapes, left_out
from moecheck.formats import to_float64
from moecheck.ops import OPS
from moecheck.references.topk_routing import scores_of, top_ids


def named(op: str, name: str) -> Case:
    return next(case for case in cases_for(op, profile="quick", seed=0, examples=0) if case.name == name)


@pytest.mark.parametrize("op", ["fused_experts", "permute", "align_block_size", "problem_sizes"])
@pytest.mark.parametrize("name", ["expert-map", "expert-map-padding", "expert-map-round-robin", "expert-map-shuffled"])
def test_an_index_of_minus_one_would_wrap_to_a_local_expert(op: str, name: str) -> None:
    assert named(op, name).inputs()["expert_map"][-1] >= 0


def test_a_shuffled_map_is_no_offset() -> None:
    mapped = named("permute", "expert-map-shuffled").inputs()["expert_map"]
    local = np.flatnonzero(mapped >= 0)
    assert (np.diff(mapped[local]) != 1).any()


def test_masked_groups_given_zero_would_win() -> None:
    """All choice scores are negative, so 0 beats them."""
    case = named("topk_routing", "grouped-negative")
    inputs = case.inputs()
    _, choice = scores_of(**inputs, spec=case.spec.routing)
    assert (np.take_along_axis(choice, top_ids(choice, 1), axis=1) < 0).all()


def test_extreme_logits_overflow_an_exponential() -> None:
    logits = to_float64(named("topk_routing", "extreme-logits").inputs()["router_logits"])
    assert (logits[np.isfinite(logits)] > np.log(np.finfo(np.float32).max)).any()


@pytest.mark.parametrize("name", ["plain-fp32", "weight-on-input", "llama-4-scout-scaled"])
def test_routing_weights_are_not_normalised(name: str) -> None:
    """A kernel that normalises them again, or leaves a single one out, is seen."""
    cases = cases_for("fused_experts", profile="default", seed=0, examples=0)
    weights = next(case for case in cases if case.name == name).inputs()["topk_weights"]
    factor = next(case for case in cases if case.name == name).spec.routing.routed_scaling_factor
    sums = weights.astype(np.float64).sum(axis=1) / factor
    assert sums.min() < 1 < sums.max()
    assert len(np.unique(sums)) > len(sums) // 2


@pytest.mark.parametrize("op", list(OPS))
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp16"])
def test_a_kernel_of_one_dtype_gets_every_named_case(op: str, dtype: str) -> None:
    """Cases named for another dtype are run in its own."""
    every = cases_for(op, profile="quick", seed=0, examples=0)
    own = cases_for(op, profile="quick", seed=0, examples=0, dtypes=(dtype,))
    assert {case.dtype for case in own} == {dtype}
    assert {case.digest for case in own} == {replace(case, dtype=dtype).digest for case in every}


def test_the_ordinary_call_comes_first() -> None:
    """The first failing case is what a report shows."""
    for op in OPS:
        assert cases_for(op, profile="default", seed=0)[0].name == "plain-bf16"


@pytest.mark.parametrize(("interpreted", "alone"), [(False, False), (True, True)], ids=["compiled", "interpreted"])
def test_compilers_get_few_shapes(interpreted: bool, alone: bool) -> None:
    cases = cases_for("grouped_gemm", profile="default", seed=0)
    left, reason = left_out(cases, profile="default", compiled=True, interpreted=interpreted, alone=alone)
    assert left == few_shapes(cases, COMPILED_SHAPES["default"])[1]
    assert left
    assert "another shape" in reason


def test_an_interpreted_kernel_among_all_gets_the_first_cases() -> None:
    cases = cases_for("grouped_gemm", profile="default", seed=0)
    left, reason = left_out(cases, profile="default", compiled=True, interpreted=True, alone=False)
    assert [case for case in cases if case not in left] == cases[: INTERPRETED_CASES["default"]]
    assert "--kernel" in reason
