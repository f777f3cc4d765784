"""Mutants of experts on several ranks: each is seen in a case where it has a meaning, and honest outputs pass there."""

from typing import Any

import pytest

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.curated_ranks import RANKS
from moecheck.formats import AnyArray
from moecheck.mutants.registry import Mutant, all_mutants, mutated_outputs
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from tests.checks.honest import honest_outputs, verdict_of

NAMES = ("two-ranks", "four-ranks", "uneven-tokens", "shuffled-placement", "all-to-one-rank", "one-rank")
ROWS: list[tuple[str, str, Any]] = [row for row in RANKS if row[0] in NAMES]
CASES = [Case(op="expert_parallel_moe", name=name, reason=reason, **changes) for name, reason, changes in ROWS]
OF_RANKS = [one for one in all_mutants() if one.family == "ranks"]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


def _verdict(case: Case, outputs: tuple[AnyArray, ...], oracle: Oracle) -> Verdict:
    return verdict_of(judge(case, outputs, oracle, Limits(), Numerics()))


@pytest.mark.parametrize("one", OF_RANKS, ids=lambda one: one.id)
def test_a_bug_of_ranks_is_seen(one: Mutant, oracle: Oracle) -> None:
    cases = [case for case in CASES if one.applies(case)]
    assert cases, "no case in which it has a meaning"
    seen = [_verdict(case, mutated_outputs(one, case, oracle, Numerics()), oracle) for case in cases]
    assert any(verdict in FAILURES for verdict in seen)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_honest_kernel_passes(case: Case, oracle: Oracle) -> None:
    assert _verdict(case, honest_outputs(case, oracle), oracle) is Verdict.PASS


def test_none_has_a_meaning_on_one_rank() -> None:
    alone = next(case for case in CASES if case.num_ranks == 1)
    assert not [one.id for one in OF_RANKS if one.applies(alone)]
