"""Triton kernels on codes under the corrected interpreter: their contracts, and a scale from the wrong place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moecheck import Unsupported
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES
from moecheck.checks.judge import Limits, judge
from moecheck.formats import AnyArray
from moecheck.kernels.triton import quantised_experts
from moecheck.kernels.triton._quantised_launch import quantise_rows
from moecheck.oracle import Oracle
from moecheck.quantised_cases import quantised_cases
from moecheck.references.quantize_blocks import quantize_blocks
from moecheck.runner.arrays import to_native, to_numpy
from tests.kernels.experts_case import Kernel, declaration, name_of

KERNELS = (
    quantised_experts.fp8_tensor,
    quantised_experts.fp8_channel,
    quantised_experts.fp8_block,
    quantised_experts.int8_channel,
)
ORACLE = Oracle()


def run(kernel: Kernel, case: Case, inputs: dict[str, Any]) -> AnyArray:
    names = declaration(kernel).arguments
    tensors = {name: to_native(np.array(value), "torch") for name, value in inputs.items() if name in names}
    return to_numpy(kernel(**tensors, spec=case.spec.experts))


def fails(kernel: Kernel, case: Case, out: AnyArray) -> bool:
    judged = judge(case, (out,), ORACLE, Limits(), declaration(kernel).numerics)
    return any(j.verdict in FAILURES for j in judged.judgements)


def cases(kernel: Kernel) -> list[Case]:
    return quantised_cases(declaration(kernel).quantizations, profile="quick", seed=1, dtypes=("bf16",), small=True)


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_honest_kernels_pass_their_cases(kernel: Kernel) -> None:
    for case in cases(kernel):
        assert not fails(kernel, case, run(kernel, case, case.inputs()))


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_a_scale_from_the_wrong_place_fails(kernel: Kernel) -> None:
    case = cases(kernel)[0]
    inputs = case.inputs()
    scales = inputs["w13_scale"]
    inputs["w13_scale"] = np.roll(scales, 1, axis=1 if scales.shape[1] > 1 else 0)
    assert fails(kernel, case, run(kernel, case, inputs))


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "fp8_e4m3fn"), (torch.int8, "int8")])
@pytest.mark.parametrize("group", [128, 0])
def test_rows_are_quantised_as_the_reference_does(group: int, dtype: torch.dtype, name: str) -> None:
    x = np.random.default_rng(2).normal(size=(3, 200)).astype(np.float32)
    x[1] = np.round(x[1] * 4.0) / 4.0  # ties
    x[2] = 0.0
    codes, scales = quantise_rows(torch.from_numpy(x), group, dtype)
    wanted = quantize_blocks(x.astype(np.float64), name, (1, group))
    assert np.array_equal(codes.view(torch.uint8).numpy(), wanted.codes)
    assert np.array_equal(scales.numpy(), wanted.scales)


def test_fp8_tensor_cores_are_no_part_of_an_interpreter() -> None:
    kernel = quantised_experts.fp8_block_native
    case = quantised_cases(declaration(kernel).quantizations, profile="quick", seed=1, dtypes=("bf16",), small=True)[0]
    with pytest.raises(Unsupported, match="tensor cores"):
        run(kernel, case, case.inputs())
