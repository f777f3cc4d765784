"""Launches of quantised experts: quantise, GEMM, activation, quantise, GEMM, sum."""

from __future__ import annotations

import torch

import moecheck
import triton

from ._jit_quantised import quantise_rows_kernel, quantised_gemm_kernel
from ._launch import INTERPRETED, block_columns, block_rows, check_spec, constants
from ._tiles import Tiles
from .align import align_block_size
from .rows import act_and_mul, sum_slots

BLOCK = 128
LEAST_AMAX = 1e-10
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
Matrices = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
Metadata = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def quantised_experts(
    hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    spec: moecheck.ExpertSpec,
    *,
    first: Matrices,
    second: Matrices,
    group: int,
    native: bool = False,
) -> torch.Tensor:
    """The weighted sum of each token's experts: [T, H] in the dtype of hidden_states, which every launch stores.

    first, second: codes [L, N, K], scales, bias [L, N] or None, and the given scale of the GEMM's input or None. group:
    rows and columns that share a scale, 0 for a scale of each row, or of all where scales have one row. native: fp8
    tensor cores instead of those of fp16.
    """
    check_spec(spec)
    experts, on_input = len(first[0]), spec.weight_on_input
    block_m = block_rows(topk_ids.numel(), experts)
    metadata = align_block_size(
        topk_ids=topk_ids,
        block_size=block_m,
        num_experts=experts if expert_map is None else len(expert_map),
        expert_map=expert_map,
    )
    weights, dtype = topk_weights.contiguous(), hidden_states.dtype
    codes = quantise_rows(hidden_states, group, first[0].dtype, first[3], weights if on_input else None)
    gate_up = _gemm(codes, first, None, metadata, topk_ids, block_m, group, topk_ids.shape[1], dtype, native)
    codes = quantise_rows(act_and_mul(x=gate_up, spec=spec), group, second[0].dtype, second[3])
    weighted = _gemm(codes, second, None if on_input else weights, metadata, topk_ids, block_m, group, 1, dtype, native)
    return sum_slots(weighted, topk_ids, expert_map, dtype=dtype)


def quantise_rows(
    x: torch.Tensor,
    group: int,
    dtype: torch.dtype,
    given: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, K] and scales [rows, ceil(K / group)] float32, or the given one; group 0 is the whole row.

    weights: [rows, 1] float32, by which rows are multiplied first, or None.
    """
    x, (rows, width) = x.contiguous(), x.shape
    group = group or width
    groups = triton.cdiv(width, group)
    codes = torch.empty(rows, width, dtype=dtype, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device) if given is None else given.expand(rows, 1)
    if codes.numel():
        quantise_rows_kernel[(rows, groups)](
            x, x if weights is None else weights, codes, scales, width, x.stride(0), codes.stride(0), scales.stride(0),
            GROUP=group, BLOCK=triton.next_power_of_2(group), LARGEST=LARGEST[dtype], LEAST_AMAX=LEAST_AMAX,
            INTEGER=dtype == torch.int8, STATIC=given is not None, WEIGHTED=weights is not None,
        )  # fmt: skip
    return codes, scales


def _gemm(
    x: tuple[torch.Tensor, torch.Tensor],
    matrices: Matrices,
    weights: torch.Tensor | None,
    metadata: Metadata,
    topk_ids: torch.Tensor,
    block_m: int,
    group: int,
    pairs_per_row: int,
    dtype: torch.dtype,
    native: bool,
) -> torch.Tensor:
    """W x + bias of every pair, weighted if given: [T * top_k, n] in `dtype`; rows without an expert are unset."""
    (codes, x_scale), (w, w_scale, bias, _) = x, matrices
    w, w_scale = w.contiguous(), w_scale.contiguous()
    outputs, inputs = w.shape[1:]
    y = torch.empty(topk_ids.numel(), outputs, dtype=dtype, device=codes.device)
    if y.numel():
        tiles = Tiles(
            block_n=block_columns(outputs) if INTERPRETED else 128,
            block_k=min(BLOCK, max(32, block_columns(inputs))) if INTERPRETED else BLOCK,
            group_m=8,
            num_warps=4,
            num_stages=3,
        )
        quantised_gemm_kernel[(len(metadata[1]) * triton.cdiv(outputs, tiles.block_n),)](
            codes, x_scale, w, w_scale, codes if bias is None else bias.contiguous(),
            codes if weights is None else weights, y, *metadata, len(y), outputs, inputs,
            codes.stride(0), x_scale.stride(0), w.stride(0), w.stride(1),
            w_scale.stride(0), w_scale.stride(1) if w_scale.shape[1] > 1 else 0, outputs, y.stride(0),
            PAIRS_PER_ROW=pairs_per_row, HAS_BIAS=bias is not None, WEIGHTED=weights is not None,
            INTEGER=w.dtype == torch.int8, SCALE_ROWS=group or 1, GROUP=group, NATIVE=native,
            **constants(tiles, block_m, columns=outputs, terms=inputs),
        )  # fmt: skip
    return y
