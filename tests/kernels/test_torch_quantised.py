"""Kernels with quantised weights in PyTorch: their contracts, no false alarm, and planted bugs that are found."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from moecheck import ExpertSpec, MoESpec, RoutingSpec, Unsupported
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.checks.values import is_vacuous
from moecheck.formats import AnyArray
from moecheck.identify import identification_cases, identify, judge_numerics
from moecheck.kernels.torch import _quantised, quantised_fp8, quantised_int8, quantised_mx, weight_only
from moecheck.oracle import Oracle
from moecheck.quantised_cases import quantised_cases
from moecheck.quantization import SCHEMES
from moecheck.references.quantize_blocks import dequantize_blocks, quantize_blocks, quantize_blocks_e8m0
from moecheck.references.quantize_elements import encode
from moecheck.runner.arrays import to_native, to_numpy
from tests.kernels.experts_case import Kernel, declaration, name_of

KERNELS = (
    quantised_fp8.fp8_tensor,
    quantised_fp8.fp8_channel,
    quantised_fp8.fp8_block,
    quantised_fp8.fp8_block_ue8m0,
    quantised_int8.int8_channel,
    weight_only.int4_groups,
    weight_only.mxfp4,
    weight_only.nvfp4,
    quantised_mx.mxfp4_both,
    quantised_int8.int4_int8,
)
Inputs = dict[str, Any]
Bug = Callable[[Inputs], Inputs]
ORACLE = Oracle()


def case_of(kernel: Kernel, *, tokens: int = 16, dtype: str = "bf16", scheme: int = 0) -> Case:
    """A small case of a scheme that the kernel takes; no width is a multiple of a block."""
    experts = ExpertSpec(quantization=declaration(kernel).quantizations[scheme])
    spec = MoESpec(routing=RoutingSpec(top_k=4, renormalize=True), experts=experts)
    sizes = {"num_tokens": tokens, "num_experts": 6, "hidden_size": 176, "intermediate_size": 144}
    return Case(op="fused_experts", spec=spec, dtype=dtype, **sizes)  # type: ignore[arg-type]  # sizes are integers


def run(kernel: Kernel, case: Case, changes: Inputs | None = None) -> AnyArray:
    """What the kernel returns; changes: a fault in what it is given."""
    given = {**given_to(case), **(changes or {})}
    names = declaration(kernel).arguments
    tensors = {name: to_native(np.array(value), "torch") for name, value in given.items() if name in names}
    return to_numpy(kernel(**tensors, spec=case.spec.experts))


@cache
def given_to(case: Case) -> Inputs:
    return case.inputs()


def faults(kernel: Kernel, case: Case, out: AnyArray) -> list[str]:
    """The checks that the output fails under the kernel's contract."""
    judged = judge(case, (out,), ORACLE, Limits(), declaration(kernel).numerics)
    return [f"{j.check}: {j.message}" for j in judged.judgements if j.verdict in FAILURES]


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_an_honest_kernel_passes_its_cases(kernel: Kernel) -> None:
    declared = declaration(kernel)
    for case in quantised_cases(declared.quantizations, profile="quick", seed=3, dtypes=declared.dtypes):
        assert faults(kernel, case, run(kernel, case)) == []


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_the_declared_contract_is_the_one_that_is_found(kernel: Kernel) -> None:
    observed = [(case, run(kernel, case)) for case in identification_cases(declaration(kernel))]
    found = identify(observed, ORACLE, declared=declaration(kernel).numerics)
    assert found.known
    assert found.numerics == declaration(kernel).numerics
    assert judge_numerics(declaration(kernel).numerics, found).verdict not in FAILURES


def test_a_contract_is_found_without_a_declaration() -> None:
    """Scale format, groups, the rule for amax, x / s, and the stores, of 288 quantising contracts and their like."""
    kernel = quantised_fp8.fp8_block_ue8m0
    found = identify([(case, run(kernel, case)) for case in identification_cases(declaration(kernel))], ORACLE)
    assert found.known
    assert found.numerics == declaration(kernel).numerics
    undeclared = judge_numerics(None, found)
    assert undeclared.verdict in FAILURES
    assert 'moecheck.Quantizer(group=128, scale="power_of_two")' in undeclared.message.replace("'", '"')


@pytest.mark.parametrize(
    ("kernel", "other"),
    [
        pytest.param(quantised_fp8.fp8_block, quantised_fp8.fp8_block_ue8m0, id="float scales, not UE8M0"),
        pytest.param(quantised_fp8.fp8_channel, quantised_fp8.fp8_block, id="per token, not in groups"),
        pytest.param(quantised_fp8.fp8_block, weight_only.mxfp4, id="quantised, not plain activations"),
        pytest.param(weight_only.mxfp4, weight_only.int4_groups, id="exact, not rounded weights"),
        pytest.param(weight_only.int4_groups, weight_only.mxfp4, id="rounded, not exact weights"),
    ],
)
def test_a_wrong_declaration_is_refuted(kernel: Kernel, other: Kernel) -> None:
    observed = [(case, run(kernel, case)) for case in identification_cases(declaration(kernel))]
    wrong = declaration(other).numerics
    judgement = judge_numerics(wrong, identify(observed, ORACLE, declared=wrong))
    # Weights of fp4 are exact in bf16, so a store of them is no difference.
    assert (judgement.verdict in FAILURES) == (kernel is not weight_only.mxfp4)


def next_block(inputs: Inputs) -> Inputs:
    scale = inputs["w2_scale"]
    return {"w2_scale": np.roll(scale, -1, axis=2 if scale.shape[2] > 1 else 1 if scale.shape[1] > 1 else 0)}


def one_scale_doubled(inputs: Inputs) -> Inputs:
    """Of one output column of one expert, the largest: the smallest are 2^-6 of it, and lost in bf16."""
    scale = inputs["w2_scale"].copy()
    column = np.argmax(scale[3, 0].astype(np.float32))
    one = scale[3, 0, column]
    scale[3, 0, column] = one + 1 if scale.dtype == np.uint8 else scale.dtype.type(2.0 * float(one))
    return {"w2_scale": scale}


def gate_and_up_scales_exchanged(inputs: Inputs) -> Inputs:
    return {"w13_scale": np.roll(inputs["w13_scale"], inputs["w13_scale"].shape[1] // 2, axis=1)}


def nibbles_exchanged(inputs: Inputs) -> Inputs:
    return {"w13": (inputs["w13"] >> 4) | (inputs["w13"] << 4)}


def zero_off_by_one(inputs: Inputs) -> Inputs:
    return {"w2_zeros": inputs["w2_zeros"] + np.uint8(1)}


def significand_cut_off(inputs: Inputs) -> Inputs:
    return {"w13_scale": (inputs["w13_scale"].view(np.uint32) & np.uint32(0xFF800000)).view(np.float32)}


def other_static_scale(inputs: Inputs) -> Inputs:
    return {"a2_scale": inputs["a1_scale"]}


def neighbours_global_scale(inputs: Inputs) -> Inputs:
    return {"w2_global_scale": np.roll(inputs["w2_global_scale"], 1)}


BLOCKED = (quantised_fp8.fp8_block, quantised_fp8.fp8_block_ue8m0)
GROUPED = (weight_only.int4_groups, weight_only.mxfp4, weight_only.nvfp4, quantised_mx.mxfp4_both)


@pytest.mark.parametrize(
    ("bug", "kernels", "scheme"),
    [
        pytest.param(next_block, KERNELS, 0, id="scale of the next block"),
        pytest.param(one_scale_doubled, KERNELS, 0, id="one scale doubled"),
        pytest.param(gate_and_up_scales_exchanged, KERNELS[1:], 0, id="scales of gate and up exchanged"),
        pytest.param(nibbles_exchanged, GROUPED, 0, id="nibbles exchanged"),
        pytest.param(zero_off_by_one, (weight_only.int4_groups,), 2, id="zero point off by one"),
        pytest.param(significand_cut_off, (*BLOCKED[:1], *KERNELS[:2]), 0, id="float scale taken for a power of two"),
        pytest.param(other_static_scale, KERNELS[:1], 0, id="the first GEMM's scale of inputs for the second"),
        pytest.param(neighbours_global_scale, (weight_only.nvfp4,), 0, id="another expert's global scale"),
        pytest.param(next_block, (weight_only.nvfp4,), 1, id="swizzled scales read one column on"),
    ],
)
def test_a_wrong_scale_or_code_fails(bug: Bug, kernels: tuple[Kernel, ...], scheme: int) -> None:
    for kernel in kernels:
        case = case_of(kernel, scheme=scheme)
        assert faults(kernel, case, run(kernel, case, bug(given_to(case)))) != [], declaration(kernel).name


@pytest.mark.parametrize(
    ("kernel", "factor"),
    [
        (quantised_fp8.fp8_block, 1.0005),
        (quantised_fp8.fp8_block_ue8m0, 1.0005),
        (weight_only.mxfp4, 1.001),
        (quantised_mx.mxfp4_both, 1.001),
    ],
    ids=name_of,
)
def test_a_small_factor_is_seen(kernel: Kernel, factor: float) -> None:
    case = case_of(kernel, tokens=96)
    weights = given_to(case)["topk_weights"]
    assert faults(kernel, case, run(kernel, case)) == []
    assert faults(kernel, case, run(kernel, case, {"topk_weights": weights * np.float32(factor)})) != []


def test_zeros_fail_where_each_is_within_what_four_bits_explain() -> None:
    """Elementwise, all zeros pass at fp4; the statistics tell them, so the case is not vacuous."""
    kernel = quantised_mx.mxfp4_both
    case = quantised_cases(declaration(kernel).quantizations, profile="quick", seed=0, dtypes=("bf16",))[-2]
    values = ORACLE.values(case, declaration(kernel).numerics)
    assert is_vacuous(values, tol=Limits().tol)
    honest = judge(case, (run(kernel, case),), ORACLE, Limits(), declaration(kernel).numerics)
    assert {j.verdict for j in honest.judgements} == {Verdict.PASS}
    assert faults(kernel, case, np.zeros(values.true.shape, honest_dtype(case))) != []


def honest_dtype(case: Case) -> np.dtype[Any]:
    """That of the kernel's output."""
    hidden: AnyArray = given_to(case)["hidden_states"]
    return hidden.dtype


def test_weights_on_inputs_are_declined() -> None:
    case = case_of(quantised_fp8.fp8_block)
    spec = ExpertSpec(weight_on_input=True, quantization=SCHEMES["fp8-block"])
    tensors = {name: to_native(np.array(value), "torch") for name, value in given_to(case).items()}
    with pytest.raises(Unsupported, match="weighs"):
        quantised_fp8.fp8_block(**tensors, spec=spec)


def test_activations_in_mxfp4_are_those_of_the_reference() -> None:
    """Ties, numbers that saturate, a group of zeros and a short last group among them."""
    x = np.random.default_rng(3).normal(size=(9, 80))
    x[1] = np.round(x[1] * 4.0) / 4.0
    x[2, :32] = 0.0
    x[3, 5] = 7.9
    x = x.astype(np.float32).astype(np.float64)
    wanted = quantize_blocks_e8m0(x, "fp4_e2m1", (1, 32), "floor")
    values = dequantize_blocks(wanted.codes, wanted.scales, "fp4_e2m1", (1, 32))
    found = quantised_mx.rounded_to_mxfp4(torch.from_numpy(x))
    assert np.array_equal(found.double().numpy(), values)


def test_a_contract_of_microscaling_is_found_without_a_declaration() -> None:
    kernel = quantised_mx.mxfp4_both
    found = identify([(case, run(kernel, case)) for case in identification_cases(declaration(kernel))], ORACLE)
    assert found.known
    assert found.numerics == declaration(kernel).numerics


@pytest.mark.parametrize("group", [128, 200])
def test_rows_are_quantised_as_the_reference_does(group: int) -> None:
    x = np.random.default_rng(1).normal(size=(7, 200)).astype(np.float32)
    codes, scales = _quantised.quantise_groups(torch.from_numpy(x), group, torch.float8_e4m3fn)
    wanted = quantize_blocks(x.astype(np.float64), "fp8_e4m3fn", (1, group))
    assert np.array_equal(codes.view(torch.uint8).numpy(), wanted.codes)
    assert np.array_equal(scales.numpy(), wanted.scales)
    integers, steps = _quantised.quantise_groups(torch.from_numpy(x), group, torch.int8)
    wanted = quantize_blocks(x.astype(np.float64), "int8", (1, group))
    assert np.array_equal(integers.numpy().view(np.uint8), wanted.codes)
    assert np.array_equal(steps.numpy(), wanted.scales)


def test_narrowing_saturates() -> None:
    x = torch.tensor([1e9, -1e9, 0.5, 1.5])
    assert _quantised.narrowed(x, torch.int8).tolist() == [127, -127, 0, 2]
    found = _quantised.narrowed(x, torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(found, encode(x.double().numpy(), "fp8_e4m3fn"))
