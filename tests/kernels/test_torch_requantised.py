"""Requantising experts in PyTorch: bit for bit the declared contract, no false alarm, and each planted bug is found."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from moecheck import ExpertSpec, MoESpec, RoutingSpec, Unsupported
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES
from moecheck.checks.judge import Limits, judge
from moecheck.formats import AnyArray
from moecheck.identify import identification_cases, identify, judge_numerics
from moecheck.kernels.torch import index_add, requantised
from moecheck.oracle import Oracle
from tests.bounds import AGREEMENT
from tests.kernels.experts_case import ExpertsCase, Kernel, bit_agreement, declaration, name_of
from tests.kernels.torch_bridge import on_torch, to_numpy

KERNELS = (requantised.fp8_requantised, requantised.fp8_requantised_per_token, requantised.fp8_requantised_ue8m0)
ORACLE = Oracle()
REQUANTISE = requantised.requantise
Requantise = Callable[..., torch.Tensor]


def case_of(seed: int, dtype: str, *, tokens: int = 16, intermediate: int = 320) -> Case:
    """A small case; 320 columns are two groups of 128 and one of 64."""
    return Case(
        op="fused_experts",
        spec=MoESpec(routing=RoutingSpec(top_k=4)),
        num_tokens=tokens,
        num_experts=8,
        hidden_size=192,
        intermediate_size=intermediate,
        dtype=dtype,
        seed=seed,
    )


@cache
def output(kernel: Kernel, case: Case, factor: float = 1.0) -> AnyArray:
    """What the kernel returns; factor: a fault in its routing weights."""
    tensors = on_torch(ORACLE.inputs(case))
    tensors["topk_weights"] = tensors["topk_weights"] * factor
    return to_numpy(kernel(**tensors, spec=case.spec.experts))


def faults(kernel: Kernel, case: Case, out: AnyArray) -> list[str]:
    """The checks that the output fails under the kernel's contract."""
    judged = judge(case, (out,), ORACLE, Limits(), declaration(kernel).numerics)
    return [f"{j.check}: {j.message}" for j in judged.judgements if j.verdict in FAILURES]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("intermediate", [256, 320, 48])
@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_outputs_are_the_declared_contract_bit_for_bit(kernel: Kernel, intermediate: int, dtype: str) -> None:
    case = ExpertsCase(tokens=32, hidden=200, intermediate=intermediate, experts=16, top_k=4, padding=True)
    inputs = case.inputs(dtype)
    out = to_numpy(kernel(**on_torch(inputs), spec=case.spec))
    assert bit_agreement(out, inputs, case=case, kernel=kernel, dtype=dtype) >= AGREEMENT


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(ExpertSpec(activation="relu2", gated=False), id="no gate"),
        pytest.param(ExpertSpec(weight_on_input=True), id="weights on inputs"),
        pytest.param(ExpertSpec(swiglu_limit=1.5, gate_up_layout="interleaved"), id="clamped"),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_other_semantics_agree_too(kernel: Kernel, spec: ExpertSpec) -> None:
    case = ExpertsCase(top_k=1 if spec.weight_on_input else 2, spec=spec, expert_map=True)
    inputs = case.inputs("bf16")
    out = to_numpy(kernel(**on_torch(inputs), spec=spec))
    assert bit_agreement(out, inputs, case=case, kernel=kernel, dtype="bf16") >= AGREEMENT


def test_biases_are_declined() -> None:
    spec = ExpertSpec(w13_bias=True, w2_bias=True)
    inputs = ExpertsCase().inputs("bf16")
    with pytest.raises(Unsupported, match="biases"):
        requantised.fp8_requantised(**on_torch(inputs), spec=spec)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_an_honest_kernel_passes(kernel: Kernel, dtype: str) -> None:
    for seed, tokens in enumerate((1, 16)):
        case = case_of(seed, dtype, tokens=tokens)
        assert faults(kernel, case, output(kernel, case)) == []


def tiles(
    x: torch.Tensor, group: int, scales: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Quantiser whose scales for rounding and for multiplying back come from `scales` of the plain ones."""
    rows, width = x.shape
    parts = torch.nn.functional.pad(x, (0, -width % group)).reshape(rows, -1, group)
    down, back = scales(parts.abs().amax(dim=-1, keepdim=True).clamp(min=requantised.LEAST_AMAX) / requantised.LARGEST)
    codes = (parts / down).clamp(-requantised.LARGEST, requantised.LARGEST).to(torch.float8_e4m3fn)
    return (codes.float() * back).reshape(rows, -1)[:, :width]


def plain(scale: torch.Tensor, *, power_of_two: bool) -> torch.Tensor:
    return requantised._rounded_up(scale) if power_of_two else scale  # the scale that a bug starts from


def half_groups(x: torch.Tensor, group: int, *, power_of_two: bool = False) -> torch.Tensor:
    return REQUANTISE(x, max(group // 2, 1), power_of_two=power_of_two)


def scale_twice_as_large(x: torch.Tensor, group: int, *, power_of_two: bool = False) -> torch.Tensor:
    return 2.0 * REQUANTISE(x, group, power_of_two=power_of_two)


def scale_of_a_neighbour(x: torch.Tensor, group: int, *, power_of_two: bool = False) -> torch.Tensor:
    def scales(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = plain(scale, power_of_two=power_of_two)
        return own, own.roll(1, 1 if own.shape[1] > 1 else 0)

    return tiles(x, group, scales)


def scale_rounded_down(x: torch.Tensor, group: int, *, power_of_two: bool = False) -> torch.Tensor:
    def scales(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = requantised._rounded_up(scale) / 2.0  # as above
        return own, own

    return tiles(x, group, scales)


def not_at_all(x: torch.Tensor, group: int, *, power_of_two: bool = False) -> torch.Tensor:
    return x


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("bug", "kernels"),
    [
        pytest.param(half_groups, KERNELS[:2], id="largest magnitude of half a group"),
        pytest.param(scale_twice_as_large, KERNELS, id="multiplied by twice the scale"),
        pytest.param(scale_of_a_neighbour, KERNELS, id="multiplied by the neighbouring group's scale"),
        pytest.param(scale_rounded_down, KERNELS[2:], id="power-of-two scale rounded down"),
        pytest.param(not_at_all, KERNELS, id="not requantised"),
    ],
)
def test_a_wrong_quantiser_fails(
    bug: Requantise, kernels: tuple[Kernel, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(2, dtype)
    for kernel in kernels:
        monkeypatch.setattr(requantised, "requantise", bug)
        out = to_numpy(kernel(**on_torch(ORACLE.inputs(case)), spec=case.spec.experts))
        assert faults(kernel, case, out) != []


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("factor", [1.002, 1.01])
@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_slightly_wrong_routing_weights_fail(kernel: Kernel, factor: float, dtype: str) -> None:
    case = case_of(2, dtype)
    assert faults(kernel, case, output(kernel, case, factor)) != []


def test_a_quantiser_without_a_declaration_is_found_and_told() -> None:
    kernel = requantised.fp8_requantised
    observed = [(case, output(kernel, case)) for case in identification_cases(declaration(kernel))[:2]]
    found = identify(observed, ORACLE)
    assert found.known
    assert found.numerics == declaration(kernel).numerics
    assert "requantises act(g)*u to fp8 e4m3 in groups of 128 with float scales" in found.words()
    undeclared = judge_numerics(None, found)
    assert undeclared.verdict in FAILURES
    assert "declare numerics=moecheck.Numerics(a2_quant=moecheck.Quantizer(group=128))" in undeclared.message
    assert judge_numerics(declaration(kernel).numerics, found).verdict not in FAILURES
    assert judge_numerics(declaration(index_add.fused_experts).numerics, found).verdict in FAILURES


def test_a_neighbouring_contract_is_not_taken_for_the_declared_one() -> None:
    case = case_of(2, "bf16")
    outs = [output(kernel, case) for kernel in KERNELS]
    for i, kernel in enumerate(KERNELS):
        assert [bool(faults(kernel, case, out)) for out in outs] == [i != j for j in range(len(KERNELS))]
    assert not np.array_equal(outs[0], outs[1])
