"""The grid by which every specialisation should be reached: every two values meet, and what was launched is told."""

from __future__ import annotations

from itertools import product

import pytest

from moecheck.checks.finding import Finding, Verdict
from moecheck.ops import OPS
from moecheck.quantization import SCHEMES
from moecheck.report.launched import launched_lines
from moecheck.spec import MoESpec, RoutingSpec
from moecheck.sweep import EXPERTS, MOST, TOKENS, TOP_K, sweep_cases

BOTH = ("bf16", "fp32")


@pytest.mark.parametrize("op", sorted(OPS))
def test_all_values_meet_that_can(op: str) -> None:
    """Each number of experts with each number of tokens, with each top_k that it allows, and with each dtype."""
    cases = sweep_cases(op, dtypes=BOTH)
    assert len(cases) <= MOST
    assert len({case.digest for case in cases}) == len(cases)
    met = {(case.num_experts, case.num_tokens) for case in cases}
    assert len(met) >= len(EXPERTS) * len(TOKENS) * 3 // 4
    allowed = {(e, k) for e, k in product(EXPERTS, TOP_K) if k <= e}
    assert {(case.num_experts, case.spec.routing.top_k) for case in cases} >= allowed
    assert {case.dtype for case in cases} == set(BOTH)


def test_groups_and_schemes_are_in_the_grid() -> None:
    """Where the op has them."""
    groups = {case.spec.routing.num_expert_groups for case in sweep_cases("topk_routing", dtypes=BOTH)}
    assert groups == {1, 8}
    wanted = (SCHEMES["fp8-block"], SCHEMES["int8-channel"])
    cases = sweep_cases("fused_experts", dtypes=BOTH, quantizations=wanted)
    assert {case.spec.experts.quantization for case in cases} == {None, *wanted}
    only = sweep_cases("fused_experts", dtypes=BOTH, quantizations=wanted, plain_weights=False)
    assert {case.spec.experts.quantization for case in only} == set(wanted)


def test_a_kernel_of_one_semantics_gets_only_that() -> None:
    """With other numbers of experts and tokens."""
    spec = MoESpec(routing=RoutingSpec(top_k=3))
    cases = sweep_cases("topk_routing", dtypes=("fp32",), specs=(spec,))
    assert {case.spec for case in cases} == {spec}
    assert {case.num_experts for case in cases} == {e for e in EXPERTS if e >= 3}


def test_the_same_seed_gives_the_same_grid() -> None:
    """And another one another."""
    first, again, other = (sweep_cases("permute", dtypes=BOTH, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_what_was_launched_is_told_with_how_often() -> None:
    """The rarest last; a kernel whose launches cannot be seen is told of, too."""

    def finding(kernel: str, case: int, launched: str) -> list[Finding]:
        facts = {"launched": launched}
        lines = [Finding(kernel=kernel, case=str(case), check="launched", verdict=Verdict.PASS, facts=facts)]
        closing = Finding(kernel=kernel, case=str(case), check="case", verdict=Verdict.PASS)
        return [*(lines if launched else []), closing]

    found = [*finding("a", 1, "x, y"), *finding("a", 2, "y"), *finding("b", 1, "")]
    first, second = launched_lines(found)
    assert first == "a: 2 device kernels in 2 cases: y (2), x (1)"
    assert "cannot be seen" in second
