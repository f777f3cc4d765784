"""A kernel that names expert_mask gets AITER's 0/1 mask in place of the expert map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moecheck.cases import Case, MapStyle
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.kernel import Declaration
from moecheck.oracle import Oracle
from moecheck.runner.plan import lacking
from moecheck.runner.target import Target, load
from moecheck.runner.worker import Outcome, run_case
from tests.checks.honest import verdict_of

KERNELS = """
import moecheck
import numpy as np


def experts(hidden_states, w13, w2, topk_weights, topk_ids, local):
    out = np.zeros(hidden_states.shape)
    for token, slot in np.argwhere(local >= 0):
        gate, up = np.split(w13[local[token, slot]].astype(float) @ hidden_states[token].astype(float), 2)
        h = gate / (1 + np.exp(-gate)) * up
        out[token] += topk_weights[token, slot] * (w2[local[token, slot]].astype(float) @ h)
    return out.astype(hidden_states.dtype)


@moecheck.kernel("fused_experts", backend="numpy")
def masked(hidden_states, w13, w2, topk_weights, topk_ids, expert_mask=None):
    if expert_mask is None:
        return experts(hidden_states, w13, w2, topk_weights, topk_ids, topk_ids)
    assert expert_mask[-1] == 0
    local = np.where(expert_mask == 1, np.cumsum(expert_mask) - 1, -1)
    return experts(hidden_states, w13, w2, topk_weights, topk_ids, local[topk_ids])


@moecheck.kernel("fused_experts", backend="numpy")
def takes_the_mask_for_a_map(hidden_states, w13, w2, topk_weights, topk_ids, expert_mask=None):
    mapped = np.arange(len(w13)) if expert_mask is None else expert_mask
    return experts(hidden_states, w13, w2, topk_weights, topk_ids, np.where(topk_ids < 0, -1, mapped[topk_ids]))


@moecheck.kernel("fused_experts", backend="numpy")
def needs_a_mask(hidden_states, w13, w2, topk_weights, topk_ids, expert_mask):
    return masked(hidden_states, w13, w2, topk_weights, topk_ids, expert_mask)


@moecheck.kernel("fused_experts", backend="numpy")
def knows_no_ranks(hidden_states, w13, w2, topk_weights, topk_ids):
    return masked(hidden_states, w13, w2, topk_weights, topk_ids)
"""
ORACLE = Oracle()


def case_of(style: MapStyle = "linear", *, local: int | None = 3) -> Case:
    return Case(
        op="fused_experts",
        dtype="fp32",
        num_tokens=12,
        num_experts=8,
        num_local_experts=local,
        map_style=style,
        hidden_size=32,
        intermediate_size=16,
        load="padding",
    )


def run(folder: Path, function: str, case: Case) -> tuple[Declaration, Outcome]:
    file = folder / "mine.py"
    file.write_text(KERNELS, encoding="utf-8")
    target = Target(spec_string=f"{file}:{function}")
    return load(target)[1], run_case(target, case)


@pytest.mark.parametrize("style", ["linear", "round_robin"])
def test_an_honest_kernel_passes(tmp_path: Path, style: MapStyle) -> None:
    declaration, outcome = run(tmp_path, "masked", case_of(style))
    assert outcome.problem is None
    assert lacking(declaration, case_of(style)) is None
    assert verdict_of(judge(case_of(style), outcome.outputs, ORACLE, Limits(), None)) is Verdict.PASS


def test_a_mask_taken_for_a_map_fails(tmp_path: Path) -> None:
    """The other way round of vllm-project/vllm#49758."""
    _, outcome = run(tmp_path, "takes_the_mask_for_a_map", case_of())
    assert outcome.problem is None
    assert verdict_of(judge(case_of(), outcome.outputs, ORACLE, Limits(), None)) in FAILURES


def test_where_all_experts_are_here_there_is_no_mask(tmp_path: Path) -> None:
    declaration, outcome = run(tmp_path, "masked", case_of(local=None))
    assert np.isfinite(outcome.outputs[0]).all()
    assert lacking(declaration, case_of(local=None)) is None


def test_an_order_that_no_mask_can_say_is_skipped(tmp_path: Path) -> None:
    _, outcome = run(tmp_path, "masked", case_of("shuffled"))
    assert outcome.problem is not None
    assert outcome.problem[0] is Verdict.SKIP
    assert "do not ascend" in outcome.problem[1]


def test_what_a_kernel_lacks_is_told_by_the_ops_own_names(tmp_path: Path) -> None:
    assert lacking(run(tmp_path, "needs_a_mask", case_of())[0], case_of(local=None)) == "needs expert_map"
    assert lacking(run(tmp_path, "knows_no_ranks", case_of())[0], case_of()) == "takes no expert_map"
