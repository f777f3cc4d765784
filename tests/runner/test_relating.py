"""Relations in a run: on which cases they are tried, how a broken one is told, and what is told of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Finding, Judgement, Verdict
from moecheck.curated import cases_for
from moecheck.kernel import Declaration, describe
from moecheck.oracle import Oracle
from moecheck.relations.relation import relations
from moecheck.runner.judges import Here
from moecheck.runner.plan import Plan, lacking
from moecheck.runner.relate import Reach, Relating, cases_to_relate
from moecheck.runner.run import KernelRun, Settings, run_kernel
from moecheck.runner.target import Target
from moecheck.runner.worker import Outcome

KERNELS = """
import os
import torch
import torch.nn.functional as F


def honest(hidden_states, w13, w2, topk_weights, topk_ids):
    out = torch.zeros(hidden_states.shape, dtype=torch.float32)
    for expert in range(w13.shape[0]):
        token, slot = torch.where(topk_ids == expert)
        gate, up = (hidden_states[token] @ w13[expert].T).float().chunk(2, dim=-1)
        down = ((F.silu(gate) * up).to(w2.dtype) @ w2[expert].T).float()
        out.index_add_(0, token, down * topk_weights[token, slot, None])
    return out.to(hidden_states.dtype)


def leaks(hidden_states, w13, w2, topk_weights, topk_ids):
    return honest(hidden_states, w13, w2, topk_weights, topk_ids) + 0 * hidden_states.sum()


def forgets(hidden_states, w13, w2, topk_weights, topk_ids):
    "Rows past the 128th are those of the first."
    out = honest(hidden_states, w13, w2, topk_weights, topk_ids)
    out[128:] = out[0]
    out[150:] = 0
    return out


def dies_of_nan(hidden_states, w13, w2, topk_weights, topk_ids):
    if hidden_states.isnan().any():
        os._exit(3)
    return honest(hidden_states, w13, w2, topk_weights, topk_ids)


def declines_nan(hidden_states, w13, w2, topk_weights, topk_ids):
    import moecheck

    if hidden_states.isnan().any():
        raise moecheck.Unsupported("takes no NaN")
    return honest(hidden_states, w13, w2, topk_weights, topk_ids)


def wants_int32(hidden_states, w13, w2, topk_weights, topk_ids):
    assert topk_ids.dtype == torch.int32
    return honest(hidden_states, w13, w2, topk_weights, topk_ids)
"""
PLAIN = Case(op="fused_experts", dtype="fp32", num_tokens=24, hidden_size=64, intermediate_size=64, name="plain-fp32")


def kernel(hidden_states: object, w13: object, w2: object, topk_weights: object, topk_ids: object) -> None: ...


def plan_of(
    folder: Path, function: str, *, declared: bool | None = None, cases: tuple[Case, ...] = (PLAIN,), tie: bool = False
) -> Plan:
    file = folder / "mine.py"
    file.write_text(KERNELS, encoding="utf-8")
    declaration = replace(
        describe(kernel, op="fused_experts", backend="torch", name=function, deterministic=declared),
        tie="lowest_index" if tie else None,
    )
    target = Target(spec_string=f"{file}:{function}", op="fused_experts", backend="torch", name=function)
    return Plan(target=target, declaration=declaration, device="cpu", cases=cases)


def run(plan: Plan, *, shrink: bool = False, reach: Reach = "few") -> tuple[KernelRun, dict[str, Finding]]:
    """The run, and its last report of the first case by check."""
    findings: list[Finding] = []
    settings = Settings(jobs=1, shrink=shrink, relations=reach)
    result = run_kernel(plan, settings, lambda _, lines: findings.extend(lines), judging=Here(Oracle()), done=set())
    return result, {line.check: line for line in findings if line.case == plan.cases[0].id}


def test_an_honest_kernel_obeys_and_its_capabilities_are_observed(tmp_path: Path) -> None:
    _, lines = run(plan_of(tmp_path, "honest"))
    assert {line.verdict for line in lines.values()} == {Verdict.PASS}
    assert lines["relations"].numbers["relations_held"] >= 18
    assert lines["relations"].facts["token_permutation"] == "held"
    assert lines["relations"].facts["shifted_logits"] == "not tried: says nothing of fused_experts"
    assert lines["determinism"].numbers == {"deterministic_observed": 1.0}
    assert lines["nan_token"].numbers == {"nan_isolation_observed": 1.0}
    assert lines["padding_rows"].numbers == {"padding_independence_observed": 1.0}
    assert "batch_invariant_observed" in lines["batch_invariance"].numbers


def test_what_the_reference_cannot_see_fails_and_shrinks(tmp_path: Path) -> None:
    result, lines = run(plan_of(tmp_path, "leaks"), shrink=True)
    assert lines["values"].verdict is Verdict.PASS
    assert lines["nan_token"].verdict is Verdict.PROVEN_WRONG
    assert lines["case"].verdict is Verdict.PROVEN_WRONG
    assert "A token of NaN changes no other token" in lines["case"].message
    assert result.failing is not None
    assert result.failing.num_tokens == 2
    assert "diagnosis" not in lines  # a known bug of the outputs is not what it is


def test_rows_past_a_block_are_missed_by_small_cases_only(tmp_path: Path) -> None:
    _, lines = run(plan_of(tmp_path, "forgets"))
    wrong = {check for check, line in lines.items() if line.verdict in (Verdict.FAIL, Verdict.PROVEN_WRONG)}
    assert wrong == {"skewed_load", "case"}


def test_a_call_that_ends_the_process_is_a_crash_of_that_relation(tmp_path: Path) -> None:
    _, lines = run(plan_of(tmp_path, "dies_of_nan"))
    assert lines["nan_token"].verdict is Verdict.CRASH
    assert "here a call ends: Its process ended with exit code 3" in lines["nan_token"].message
    assert lines["case"].verdict is Verdict.CRASH


def test_a_call_that_the_kernel_declines_is_no_finding(tmp_path: Path) -> None:
    _, lines = run(plan_of(tmp_path, "declines_nan"))
    assert "nan_token" not in lines
    assert lines["case"].verdict is Verdict.PASS


def test_wide_ids_may_be_refused(tmp_path: Path) -> None:
    _, lines = run(plan_of(tmp_path, "wants_int32"))
    assert lines["case"].verdict is Verdict.PASS


def test_a_capability_that_nothing_verified_is_told(tmp_path: Path) -> None:
    _, lines = run(plan_of(tmp_path, "honest", declared=True, tie=True))
    assert lines["determinism"].verdict is Verdict.PASS
    assert lines["capabilities"].numbers == {"tie_unverified": 1.0}
    assert lines["capabilities"].message == "It declares tie, and no case of this run could verify that."


def test_an_unnamed_case_is_tried_where_every_case_is(tmp_path: Path) -> None:
    drawn = replace(PLAIN, name="")
    assert "relations" not in run(plan_of(tmp_path, "honest", cases=(drawn,)))[1]
    assert "relations" in run(plan_of(tmp_path, "honest", cases=(drawn,)), reach="every")[1]


def test_a_named_case_verifies_what_is_declared() -> None:
    strided = next(case for case in cases_for("fused_experts", profile="quick", seed=0) if case.name == "strided")
    plan = replace_declaration(cases=(strided,), deterministic=True)
    relating = Relating(plan=plan, judging=Here(Oracle()), call=_nothing, full=frozenset())
    assert relating.names(strided) == ("determinism",)
    assert relating.names(replace(strided, name="")) == ()
    assert relating.unverified() == ["deterministic"]


def test_a_tie_rule_is_verified_by_its_check() -> None:
    relating = Relating(
        plan=replace_declaration(tie="lowest_index"), judging=Here(Oracle()), call=_nothing, full=frozenset()
    )
    relating.note([Judgement(check="tie", verdict=Verdict.PASS)])
    assert relating.unverified() == []


def replace_declaration(*, cases: tuple[Case, ...] = (), device: str = "cpu", **changes: object) -> Plan:
    declaration: Declaration = replace(
        describe(kernel, op="fused_experts", backend="torch"),
        **changes,  # type: ignore[arg-type]  # fields of Declaration
    )
    target = Target(spec_string="mine.py:kernel", op="fused_experts", backend="torch", name="mine")
    return Plan(target=target, declaration=declaration, device=device, cases=cases)


def _nothing(case: Case, name: str, calls: int) -> list[Outcome]:
    raise AssertionError(f"{name} was tried")


@pytest.mark.parametrize(
    ("device", "backend", "reach", "names"),
    [
        pytest.param("cpu", "torch", "few", {"plain-bf16", "plain-fp32"}, id="two formats"),
        pytest.param("interpreter", "triton", "few", {"plain-bf16"}, id="one where calls are slow"),
        pytest.param("cpu", "jax", "few", {"plain-bf16"}, id="one where each shape is compiled"),
    ],
)
def test_few_plain_cases_are_chosen(device: str, backend: str, reach: Reach, names: set[str]) -> None:
    plan = replace_declaration(device=device, backend=backend)
    cases = [
        case for case in cases_for("fused_experts", profile="default", seed=0) if not lacking(plan.declaration, case)
    ]
    chosen = cases_to_relate(plan, cases, reach)
    assert {case.name for case in chosen} == names
    assert {case.name for case in cases_to_relate(plan, cases, "named")} == {case.name for case in cases if case.name}
    assert cases_to_relate(plan, cases, "every") == frozenset(cases)
    relating = Relating(plan=plan, judging=Here(Oracle()), call=_nothing, full=chosen)
    tried = relating.names(next(iter(chosen)))
    slow = (device, backend) != ("cpu", "torch")
    assert set(tried) == {name for name, law in relations().items() if law.keeps_shapes or not slow}


def test_a_further_case_is_chosen_where_it_makes_a_relation_possible() -> None:
    plan = replace_declaration(op="topk_routing", arguments=("router_logits", "correction_bias", "spec"))
    cases = cases_for("topk_routing", profile="default", seed=0)
    chosen = cases_to_relate(plan, cases, "few")
    assert {"plain-bf16", "plain-fp32"} < {case.name for case in chosen}
    assert any(case.spec.routing.correction_bias == "select" for case in chosen)


def test_a_slow_kernel_among_many_has_no_relations_but_what_it_declares() -> None:
    plan = replace(replace_declaration(device="interpreter", backend="pallas_tpu", deterministic=True), part=True)
    cases = [case for case in cases_for("fused_experts", profile="default", seed=0) if case.name == "plain-bf16"]
    assert cases_to_relate(plan, cases, "few") == frozenset()
    relating = Relating(plan=plan, judging=Here(Oracle()), call=_nothing, full=frozenset())
    assert relating.names(cases[0]) == ("determinism",)
    assert "copy_schedules" in Relating(
        plan=replace(plan, part=False), judging=Here(Oracle()), call=_nothing, full=frozenset()
    ).names(cases[0])
