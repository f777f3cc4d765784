"""Exact probes: every activation is told from its likes, and an integer case shows every missing column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.curated import cases_for
from moecheck.formats import AnyArray, to_float64
from moecheck.kernels.torch.activation import act_and_mul
from moecheck.kernels.torch.index_add import fused_experts
from moecheck.oracle import Oracle
from moecheck.probes import every_value, gates_and_ups, moderate_values
from moecheck.runner.arrays import to_native, to_numpy
from moecheck.spec import ExpertSpec
from tests.checks.honest import verdict_of

PROBES = {case.name: case for op in ("act_and_mul", "fused_experts") for case in cases_for(op, profile="quick", seed=0)}
INTEGER = PROBES["integer-exact"]
ORACLE = Oracle()  # each case is computed once for all of its tests
Kernel = Callable[..., torch.Tensor]


def run(case: Case, *, spec: ExpertSpec, inputs: dict[str, Any] | None = None) -> tuple[AnyArray, ...]:
    """The torch kernel of the case's op on its inputs, told to compute `spec`."""
    arguments = {name: to_native(value, "torch") for name, value in (inputs or ORACLE.inputs(case)).items()}
    kernel: Kernel = act_and_mul if case.op == "act_and_mul" else fused_experts
    return (to_numpy(kernel(**arguments, spec=spec)),)


def verdict(case: Case, outputs: tuple[AnyArray, ...]) -> Verdict:
    return verdict_of(judge(case, outputs, ORACLE, Limits(), None))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_every_finite_number_is_a_gate_once_with_an_up_of_one(dtype: str) -> None:
    values = every_value(dtype)
    assert len(values) == len(np.unique(values)) + 1 == (63_488 if dtype == "fp16" else 65_280)  # +0 and -0
    gates, ups = gates_and_ups(2 * len(values), dtype)
    assert (ups[: len(values)] == 1).all()
    np.testing.assert_array_equal(np.sort(gates[: len(values)]), np.sort(values))
    np.testing.assert_array_equal(np.sort(gates[len(values) :]), np.sort(values))
    assert len(np.unique(np.abs(ups[len(values) :]))) == 5
    assert len(np.unique(np.sign(ups[len(values) :]))) == 2
    largest = np.max(np.abs(values))
    assert (np.abs(gates * ups) <= largest).all()


@pytest.mark.parametrize("name", [name for name in PROBES if name.startswith("every-gate")])
def test_a_curated_case_holds_every_value(name: str) -> None:
    case = PROBES[name]
    x = to_float64(case.inputs()["x"])
    gates = x[:, ::2] if case.spec.experts.gate_up_layout == "interleaved" else x[:, : case.intermediate_size]
    assert set(np.unique(gates)) == set(np.unique(every_value(case.dtype)))


@pytest.mark.parametrize("name", ["activation-bf16", "activation-fp32"])
def test_an_expert_reads_every_moderate_value(name: str) -> None:
    case = PROBES[name]
    inputs = {key: to_float64(value) for key, value in case.inputs().items()}
    read = set()
    for token, expert in enumerate(case.inputs()["topk_ids"][:, 0]):
        read |= set((inputs["w13"][expert, : case.intermediate_size] @ inputs["hidden_states"][token]).tolist())
    assert read == set(moderate_values(case.dtype).tolist())


@pytest.mark.parametrize("name", [name for name, case in PROBES.items() if case.stratum == "one_hot"])
def test_an_honest_kernel_passes(name: str) -> None:
    case = PROBES[name]
    assert verdict(case, run(case, spec=case.spec.experts)) is Verdict.PASS


SILU, ERF, TANH = (ExpertSpec(activation=name) for name in ("silu", "gelu", "gelu_tanh"))
CLAMPED = ExpertSpec(swiglu_limit=7.0)
QUICK_GELU = ExpertSpec(swiglu_alpha=1.702)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        pytest.param(name, wrong, id=f"{name}: {words}")
        for name, right in (
            ("every-gate-bf16", SILU),
            ("every-gate-fp16", SILU),
            ("every-gate-fp32", SILU),
            ("every-gate-gelu", ERF),
            ("every-gate-gelu-tanh", TANH),
            ("activation-bf16", SILU),
            ("activation-fp32", SILU),
            ("activation-gelu", ERF),
            ("activation-gelu-tanh", TANH),
        )
        for wrong, words in (
            (SILU, "silu"),
            (ERF, "erf"),
            (TANH, "tanh"),
            (CLAMPED, "clamped before"),
            (replace(CLAMPED, limit_position="after"), "clamped after"),
            (QUICK_GELU, "quick gelu"),
            (replace(right, swiglu_beta=1.0), "up + 1"),
        )
        if wrong != right
    ],
)
def test_another_activation_fails_on_the_probe_alone(name: str, wrong: ExpertSpec) -> None:
    case = PROBES[name]
    assert verdict(case, run(case, spec=wrong)) in FAILURES


def test_one_wrong_number_of_all_fails() -> None:
    case = PROBES["every-gate-bf16"]
    (out,) = run(case, spec=case.spec.experts)
    out = out.copy()
    size = np.abs(to_float64(out))
    row, column = np.argwhere((size > 1) & (size < 2))[0]
    out[row, column] *= out.dtype.type(1.0625)
    assert verdict(case, (out,)) in FAILURES


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("axis", ["hidden", "intermediate"])
@pytest.mark.parametrize("lost", [slice(-16, None), slice(-1, None), slice(32, 48), slice(0, 1)], ids=str)
def test_a_lost_tile_is_proven_wrong(axis: str, lost: slice, dtype: str) -> None:
    """A kernel that leaves out the last 16 columns of a GEMM, one column, or a tile in the middle."""
    case = replace(INTEGER, dtype=dtype)
    inputs = dict(ORACLE.inputs(case))
    name = "hidden_states" if axis == "hidden" else "w2"
    inputs[name] = inputs[name].copy()
    inputs[name][..., lost] = 0
    assert verdict(case, run(case, spec=case.spec.experts, inputs=inputs)) is Verdict.PROVEN_WRONG


@pytest.mark.parametrize("name", ["w13_bias", "w2_bias"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_lost_or_shifted_bias_is_proven_wrong(name: str, dtype: str) -> None:
    case = replace(PROBES["integer-biases"], dtype=dtype)
    inputs = ORACLE.inputs(case)
    spec = case.spec.experts
    assert verdict(case, run(case, spec=spec)) is Verdict.PASS
    for bias in (np.zeros_like(inputs[name]), np.roll(inputs[name], 1, axis=0), np.roll(inputs[name], 1, axis=1)):
        assert verdict(case, run(case, spec=spec, inputs={**inputs, name: bias})) is Verdict.PROVEN_WRONG


def test_the_tokens_of_an_integer_case_use_every_column() -> None:
    for tokens, hidden in ((64, 256), (128, 256), (33, 90), (128, 384), (4, 3)):
        case = replace(INTEGER, num_tokens=tokens, hidden_size=hidden)
        assert to_float64(case.inputs()["hidden_states"]).any(axis=0).all()


def functional_silu_in_low_precision(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def test_a_declared_store_of_the_activation_passes() -> None:
    """silu(g) stored in bf16 on its own, as modelling code does: honest where the floor allows the store."""
    case = PROBES["every-gate-bf16"]
    out = to_numpy(functional_silu_in_low_precision(to_native(case.inputs()["x"], "torch")))
    assert verdict(case, (out,)) is Verdict.PASS
