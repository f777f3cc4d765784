"""`moecheck kernels --model NAME --tokens T`: a published layer in full size, sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moecheck.cases import SAMPLED_OPS
from moecheck.cli.grids import full_size_plan, usual_plan
from moecheck.errors import UsageError
from moecheck.kernel import describe
from moecheck.models import MODELS, full_size_cases, model_case, shard_of
from moecheck.quantization import SCHEMES
from moecheck.registry import Found
from moecheck.runner.target import Target
from moecheck.spec import MoESpec
from tests.cli.command import moecheck


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tokens", "4096"], "needs --model"),
        (["--model", "mixtral-8x7b", "--tokens", "12,x"], "positive numbers"),
        (["--model", "mixtral-8x7b", "--tokens", "0"], "positive numbers"),
        (["--model", "mixtral-8x7", "--tokens", "4"], "mixtral-8x7b"),
        (["--model", "mixtral-8x7b-tp5", "--tokens", "4"], "cannot be split"),
    ],
)
def test_bad_options_are_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    """And exit code 2."""
    result = moecheck("kernels", *arguments, out=tmp_path)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err


def test_a_shard_has_a_part_of_each_experts_width() -> None:
    """Tensor parallelism over 8 ranks."""
    model, ranks = shard_of("deepseek-v3-tp8")
    assert (model, ranks) == (MODELS["deepseek-v3"], 8)
    case = model_case("deepseek-v3-tp8", "fused_experts", num_tokens=16, dtype="bf16", full_size=True)
    assert (case.num_experts, case.hidden_size, case.intermediate_size) == (256, 7168, 256)
    with pytest.raises(UsageError):
        shard_of("deepseek-v3-tp0")


@pytest.mark.parametrize("op", [*SAMPLED_OPS, "topk_routing", "grouped_gemm"])
def test_full_size_cases_are_sampled_where_the_reference_may(op: str) -> None:
    """An op whose reference would take minutes has none."""
    cases = full_size_cases(
        "qwen3-30b-a3b",
        op,
        tokens=(16, 4096),
        dtypes=("fp16", "bf16"),
        quantizations=(SCHEMES["fp8-block"],),
        plain_weights=True,
        seed=0,
    )
    assert {bool(case.sampled) for case in cases} == ({op in SAMPLED_OPS} if op != "grouped_gemm" else set())
    assert {case.dtype for case in cases} <= {"bf16"}
    quantised = [case for case in cases if case.spec.experts.quantization is not None]
    assert len(quantised) == (2 if op == "fused_experts" else 0)


@pytest.mark.parametrize(
    ("specs", "wanted"),
    [((), 1), ((MODELS["gpt-oss-20b"].spec,), 0), ((MODELS["mixtral-8x7b"].spec,), 1)],
    ids=["any", "other semantics", "these semantics"],
)
def test_a_kernel_of_other_semantics_is_left_out(specs: tuple[MoESpec, ...], wanted: int) -> None:
    """With the reason."""
    declared = describe(call, op="fused_experts", backend="torch", specs=specs)
    target = Target(spec_string="a.py:call")
    found = Found(target=target, declaration=declared, device="cpu", import_seconds=0.0)
    plan = full_size_plan(found, model="mixtral-8x7b", tokens="4", dtype=None, seed=0)
    assert plan is not None
    assert len(plan.cases) == wanted
    assert bool(plan.left_out_reason and plan.left_out) == (wanted == 0)


def call(*, hidden_states: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any, spec: Any) -> Any:
    """A signature."""


@pytest.mark.parametrize(("alone", "part"), [(False, True), (True, False)], ids=["among all", "alone"])
def test_a_slow_kernel_is_run_in_part_only_among_all_kernels(alone: bool, part: bool) -> None:
    declared = describe(call, op="fused_experts", backend="pallas_tpu")
    found = Found(
        target=Target(spec_string="mine.py:call", op="fused_experts", backend="pallas_tpu", name="mine"),
        declaration=declared,
        device="interpreter",
        import_seconds=0.0,
    )
    plan = usual_plan(found, profile="quick", seed=0, model=None, examples=None, dtype=None, alone=alone)
    assert plan.part == part
    assert plan.left_out
    assert len(plan.cases) + len(plan.left_out) == len(set(plan.cases) | set(plan.left_out))
