"""align_block_size under an expert map: blocks of foreign experts may be absent, or present and marked -1."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.checks.structure import judge_structure
from moecheck.formats import AnyArray
from moecheck.oracle import Oracle
from moecheck.references.align_block_size import align_block_size

CASE = Case(op="align_block_size", num_experts=12, num_local_experts=5, map_style="shuffled", load="padding")


def with_foreign_blocks() -> tuple[AnyArray, ...]:
    inputs = CASE.inputs()
    expert_map = inputs.pop("expert_map")
    ids, experts, padded = align_block_size(**inputs)
    return ids, np.where(experts >= 0, expert_map[np.maximum(experts, 0)], -1), padded


@pytest.mark.parametrize("layout", ["absent", "marked"])
def test_both_layouts_pass(layout: str) -> None:
    oracle = Oracle()
    outputs = oracle.outputs(CASE) if layout == "absent" else with_foreign_blocks()
    judgement = judge_structure(CASE, oracle.inputs(CASE), outputs, oracle.outputs(CASE))
    assert judgement.verdict is Verdict.PASS


def test_a_foreign_block_with_a_local_id_fails() -> None:
    """That block would be computed with another expert's weights."""
    oracle = Oracle()
    ids, experts, padded = with_foreign_blocks()
    assert (experts[: int(padded[0]) // CASE.block_size] < 0).any()
    wrong = np.where(experts < 0, 0, experts)
    judgement = judge_structure(CASE, oracle.inputs(CASE), (ids, wrong, padded), oracle.outputs(CASE))
    assert judgement.verdict is Verdict.PROVEN_WRONG
