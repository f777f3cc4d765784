"""A run of sampled cases: every token is checked by further calls, where the sampled ones are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Finding, Verdict
from moecheck.runner.plan import Plan
from moecheck.runner.run import Settings, run_all
from moecheck.runner.target import Target, load

CASE = Case(
    op="fused_experts", num_tokens=40, num_experts=6, hidden_size=64, intermediate_size=32, dtype="fp32", sampled=8
)
CASES = (CASE, replace(CASE, num_tokens=48))
OF_ALL_TOKENS = {"row_sizes", "sampled_crowd", "token_order"}
KERNEL = """
import moecheck
import numpy as np
from moecheck.references.fused_experts import fused_experts

@moecheck.kernel("fused_experts", backend="numpy", numerics=moecheck.Numerics())
def mine(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    wide = (array.astype(np.float64) for array in (hidden_states, w13, w2, topk_weights))
    x, w13, w2, weights = wide
    out = fused_experts(hidden_states=x, w13=w13, w2=w2, topk_weights=weights, topk_ids=topk_ids, spec=spec)
    return ({factor} * out).astype(np.float32)
"""


def verdicts(factor: float, folder: Path) -> dict[str, dict[str, Verdict]]:
    """Of each case, check -> its verdict."""
    file = folder / "mine.py"
    file.write_text(KERNEL.format(factor=factor), encoding="utf-8")
    target = Target(spec_string=f"{file}:mine")
    plan = Plan(target=target, declaration=load(target)[1], device="cpu", cases=CASES)
    findings: list[Finding] = []
    run_all([plan], Settings(jobs=1, timeout=60.0), lambda _, lines: findings.extend(lines), done=set())
    return {case.id: {f.check: f.verdict for f in findings if f.case == case.id} for case in CASES}


@pytest.mark.parametrize("factor", [1.0, 1.5], ids=["right", "wrong"])
def test_every_case_is_judged(factor: float, tmp_path: Path) -> None:
    """One whose sampled tokens are wrong needs no further calls: those that were begun are given up."""
    for checks in verdicts(factor, tmp_path).values():
        assert (checks["case"] is Verdict.PASS) == (factor == 1.0)
        assert OF_ALL_TOKENS & set(checks) == (OF_ALL_TOKENS if factor == 1.0 else set())
