"""The ops between the GEMMs in PyTorch, against their references."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moecheck import ExpertSpec, Unsupported
from moecheck.kernels.torch import activation, grouped_mm, permute, plan
from moecheck.spec import SWIGLUOAI
from tests.kernels import plumbing
from tests.kernels.experts_case import declaration
from tests.kernels.torch_bridge import numpy_call

DTYPES = ("fp32", "fp16", "bf16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 17])
def test_permute(tokens: int, mapped: bool, dtype: str) -> None:
    plumbing.check_permute(numpy_call(permute.permute), tokens=tokens, experts=9, mapped=mapped, dtype=dtype)


def test_permute_takes_scales_along() -> None:
    ids = torch.tensor([[1, 0], [-1, 1]], dtype=torch.int32)
    scale = torch.arange(4.0).view(2, 2)
    _, permuted_scale, _, _ = permute.permute(
        hidden_states=torch.zeros(2, 4), topk_ids=ids, num_experts=2, hidden_scale=scale
    )
    assert permuted_scale is not None
    assert torch.equal(permuted_scale[:3], scale[[0, 0, 1]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 17])
def test_unpermute(tokens: int, dtype: str) -> None:
    numerics = declaration(permute.unpermute).numerics
    plumbing.check_unpermute(numpy_call(permute.unpermute), tokens=tokens, dtype=dtype, numerics=numerics)


def test_unpermute_without_rows_gives_zeros() -> None:
    out = permute.unpermute(
        permuted=torch.zeros(0, 4), topk_weights=torch.ones(2, 3), inv_permuted_idx=torch.full((2, 3), -1)
    )
    assert torch.equal(out, torch.zeros(2, 4))


def test_shuffle_rows_copies_rows() -> None:
    x = torch.arange(6.0).view(3, 2)
    assert torch.equal(permute.shuffle_rows(x=x, row_map=torch.tensor([2, 2, 0], dtype=torch.int32)), x[[2, 2, 0]])


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("sizes", [(0, 8, 16), (1, 8, 16), (33, 9, 4), (40, 4, 1)], ids=str)
def test_align_block_size(sizes: tuple[int, int, int], mapped: bool) -> None:
    tokens, experts, block_size = sizes
    call = numpy_call(plan.align_block_size)
    plumbing.check_align_block_size(call, tokens=tokens, experts=experts, block_size=block_size, mapped=mapped)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("tokens", [0, 17])
def test_problem_sizes(tokens: int, mapped: bool) -> None:
    plumbing.check_problem_sizes(numpy_call(plan.problem_sizes), tokens=tokens, experts=9, mapped=mapped)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [[5, 0, 9, 1], [0, 0, 0], [0, 33]], ids=str)
def test_grouped_gemm(counts: list[int], dtype: str) -> None:
    kernel = grouped_mm.grouped_gemm
    numerics = declaration(kernel).numerics
    plumbing.check_grouped_gemm(numpy_call(kernel), counts=counts, tail=3, dtype=dtype, numerics=numerics)


def test_rows_past_the_last_group_are_zero() -> None:
    out = grouped_mm.grouped_gemm(
        x=torch.ones(4, 8), w=torch.ones(2, 4, 8), expert_ends=torch.tensor([1, 2], dtype=torch.int32)
    )
    assert torch.equal(out[2:], torch.zeros(2, 4))


@pytest.mark.parametrize(("rows", "columns"), [(8, 6), (6, 8)])
def test_grouped_mm_declines_what_it_cannot_align(rows: int, columns: int) -> None:
    with pytest.raises(Unsupported, match="16 bytes"):
        grouped_mm.grouped_gemm(
            x=torch.ones(4, columns), w=torch.ones(1, rows, columns), expert_ends=torch.tensor([4], dtype=torch.int32)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "spec",
    [
        ExpertSpec(),
        ExpertSpec(activation="gelu"),
        ExpertSpec(activation="gelu_tanh", swiglu_limit=2.0),
        ExpertSpec(activation="relu2", gated=False, swiglu_limit=2.0),
        ExpertSpec(activation="situ", situ_beta=4.0, swiglu_limit=1.0, limit_position="after"),
        SWIGLUOAI,
        ExpertSpec(gate_up_layout="up_first", swiglu_limit=2.0),
    ],
    ids=lambda spec: f"{spec.activation} {spec.gate_up_layout} {spec.limit_position} {spec.swiglu_limit}",
)
def test_act_and_mul(spec: ExpertSpec, dtype: str) -> None:
    kernel = activation.act_and_mul
    numerics = declaration(kernel).numerics
    plumbing.check_act_and_mul(numpy_call(kernel), spec, rows=31, dtype=dtype, numerics=numerics)


@pytest.mark.parametrize(
    ("layout", "order"),
    [
        ("interleaved_8", [*range(8), *range(16, 24), *range(8, 16), *range(24, 32)]),
        ("interleaved_16", [*range(32)]),
    ],
)
def test_blocks_of_gates_and_ups(layout: Any, order: list[int]) -> None:
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    blocks = activation.act_and_mul(x=x, spec=ExpertSpec(gate_up_layout=layout))
    assert torch.equal(blocks, activation.act_and_mul(x=x[:, order], spec=ExpertSpec()))
    with pytest.raises(Unsupported, match="need a multiple of"):
        activation.act_and_mul(x=x[:, :24], spec=ExpertSpec(gate_up_layout=layout))
