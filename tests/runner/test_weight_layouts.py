"""Kernels that declare a weight layout are run with weights so arranged; one that reads another is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Finding, Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.errors import UsageError
from moecheck.kernel import kernel
from moecheck.oracle import Oracle
from moecheck.runner.judges import Here
from moecheck.runner.plan import Plan
from moecheck.runner.run import Settings, run_kernel
from moecheck.runner.target import Target, load
from moecheck.runner.worker import run_case
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec
from moecheck.weight_layout import WeightLayout
from tests.checks.honest import verdict_of

KERNELS = """
import moecheck
import torch
import torch.nn.functional as F

NAMES = "hidden_states, w13, w2, topk_weights, topk_ids"


def experts(hidden_states, topk_weights, topk_ids, count, feed_forward):
    out = torch.zeros(hidden_states.shape, dtype=torch.float32)
    for expert in range(count):
        token, slot = torch.where(topk_ids == expert)
        out.index_add_(0, token, feed_forward(hidden_states[token], expert).float() * topk_weights[token, slot, None])
    return out.to(hidden_states.dtype)


@moecheck.kernel("fused_experts", backend="torch", weight_layout=moecheck.WeightLayout(gate_up="up_first"))
def w31(hidden_states, w13, w2, topk_weights, topk_ids):
    def feed_forward(x, e):
        up, gate = (x @ w13[e].T).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ w2[e].T

    return experts(hidden_states, topk_weights, topk_ids, len(w13), feed_forward)


@moecheck.kernel("fused_experts", backend="torch", weight_layout=moecheck.WeightLayout(gate_up="up_first"))
def declares_w31_and_reads_w13(hidden_states, w13, w2, topk_weights, topk_ids):
    def feed_forward(x, e):
        gate, up = (x @ w13[e].T).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ w2[e].T

    return experts(hidden_states, topk_weights, topk_ids, len(w13), feed_forward)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    weight_layout=moecheck.WeightLayout(
        gate_up="halves", stacked=True, transposed=True, hidden_multiple=48, intermediate_multiple=64
    ),
)
def stacked(hidden_states, w13, w2, topk_weights, topk_ids, spec):
    assert w13.shape[1] == 2 and w13.shape[2] % 48 == 0 and w13.shape[3] % 64 == 0
    assert hidden_states.shape[1] == w13.shape[2]
    assert spec.gate_up_layout == "halves"
    if spec.activation != "silu" or spec.swiglu_alpha != 1 or not spec.gated or spec.w13_bias or spec.swiglu_limit:
        raise moecheck.Unsupported("plain silu only")

    def feed_forward(x, e):
        return (F.silu(x @ w13[e, 0]) * (x @ w13[e, 1])) @ w2[e]

    return experts(hidden_states, topk_weights, topk_ids, len(w13), feed_forward)


@moecheck.kernel("fused_experts", backend="torch", weight_layout=moecheck.WeightLayout(hidden_multiple=48))
def into_out(hidden_states, w13, w2, topk_weights, topk_ids, out):
    def feed_forward(x, e):
        gate, up = (x @ w13[e].T).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ w2[e].T

    out.copy_(experts(hidden_states, topk_weights, topk_ids, len(w13), feed_forward))


@moecheck.kernel("fused_experts", backend="torch", weight_layout=moecheck.WeightLayout(gate_up="interleaved_8"))
def by_eight(hidden_states, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, spec):
    assert spec.gate_up_layout == "interleaved_8"

    def feed_forward(x, e):
        both = (x @ w13[e].T + w13_bias[e]).unflatten(1, (-1, 2, 8))
        gate, up = both[:, :, 0].flatten(1), both[:, :, 1].flatten(1)
        gate, up = gate.clamp(max=spec.swiglu_limit), up.clamp(-spec.swiglu_limit, spec.swiglu_limit)
        return (gate * torch.sigmoid(spec.swiglu_alpha * gate) * (up + spec.swiglu_beta)) @ w2[e].T + w2_bias[e]

    return experts(hidden_states, topk_weights, topk_ids, len(w13), feed_forward)


graphs = {}


@moecheck.kernel("fused_experts", backend="torch")
def replays(hidden_states, w13, w2, topk_weights, topk_ids):
    "As a captured graph that took a copy of its input: whoever comes back with the same buffer gets the old tokens."
    x = graphs.setdefault(hidden_states.data_ptr(), (hidden_states, hidden_states.clone()))[1]

    def feed_forward(rows, e):
        gate, up = (rows @ w13[e].T).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ w2[e].T

    return experts(x, topk_weights, topk_ids, len(w13), feed_forward)
"""
SIZES = {"num_tokens": 24, "hidden_size": 80, "intermediate_size": 96, "name": "plain"}
PLAIN = Case(op="fused_experts", dtype="fp32", **SIZES)  # type: ignore[arg-type]  # fields of Case
OAI = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True), experts=SWIGLUOAI)
INTERLEAVED = MoESpec(routing=RoutingSpec(top_k=2), experts=ExpertSpec(gate_up_layout="interleaved"))


def target_of(folder: Path, function: str) -> Target:
    file = folder / "mine.py"
    file.write_text(KERNELS, encoding="utf-8")
    return Target(spec_string=f"{file}:{function}", name=function)


def verdict(folder: Path, function: str, case: Case) -> Verdict:
    """Of one call in this process."""
    target, oracle = target_of(folder, function), Oracle()
    outcome = run_case(target, case)
    assert outcome.problem is None, outcome.problem
    return verdict_of(judge(case, outcome.outputs, oracle, Limits(), None))


def findings(folder: Path, function: str, case: Case = PLAIN) -> dict[str, Finding]:
    """What a run says of the case, by check, all relations tried."""
    target = target_of(folder, function)
    _, declaration = load(target)
    plan = Plan(target=target, declaration=declaration, device="cpu", cases=(case,))
    lines: list[Finding] = []
    settings = Settings(jobs=1, shrink=False, relations="every")
    run_kernel(plan, settings, lambda _, found: lines.extend(found), judging=Here(Oracle()), done=set())
    return {line.check: line for line in lines if line.case == case.id}


@pytest.mark.parametrize(
    ("function", "case"),
    [
        pytest.param("w31", PLAIN, id="ups first"),
        pytest.param("stacked", PLAIN, id="(E, 2, H, I), both widths padded"),
        pytest.param("into_out", PLAIN, id="a padded output array"),
        pytest.param("by_eight", Case(op="fused_experts", spec=OAI, dtype="fp32", **SIZES), id="blocks of eight"),  # type: ignore[arg-type]  # fields of Case
        pytest.param(
            "stacked",
            Case(op="fused_experts", spec=INTERLEAVED, dtype="fp32", **SIZES),  # type: ignore[arg-type]  # fields of Case
            id="an interleaved checkpoint, halves in the kernel",
        ),
    ],
)
def test_a_kernel_needs_no_conversion_of_its_own(tmp_path: Path, function: str, case: Case) -> None:
    assert verdict(tmp_path, function, case) is Verdict.PASS


def test_every_relation_holds_in_another_layout(tmp_path: Path) -> None:
    found = findings(tmp_path, "stacked")
    assert {line.check: line.message for line in found.values() if line.verdict in FAILURES} == {}
    assert found["relations"].facts["padded_widths"] == "held"
    assert found["relations"].facts["tensor_shards"] == "held"


def test_a_kernel_that_reads_another_layout_than_it_declares_is_found(tmp_path: Path) -> None:
    assert verdict(tmp_path, "declares_w31_and_reads_w13", PLAIN) in FAILURES


def test_a_replayed_copy_is_found(tmp_path: Path) -> None:
    found = findings(tmp_path, "replays")
    assert found["values"].verdict is Verdict.PASS
    assert found["replaced_values"].verdict in (Verdict.FAIL, Verdict.PROVEN_WRONG)
    broken = {line.check for line in found.values() if line.verdict in FAILURES}
    assert "replaced_values" in broken


@pytest.mark.parametrize(
    ("op", "layout", "message"),
    [
        pytest.param("permute", WeightLayout(), "takes no weights", id="no weights"),
        pytest.param("grouped_gemm", WeightLayout(gate_up="halves"), "only `transposed`", id="no gate and up"),
    ],
)
def test_a_layout_needs_weights(op: str, layout: WeightLayout, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kernel(op, backend="numpy", weight_layout=layout)(lambda: None)
