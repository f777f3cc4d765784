"""Row-wise ops in Triton: activation, permute and unpermute, host side."""

from __future__ import annotations

import torch

import moecheck
import triton
from moecheck.numerics import INPUT

from ._jit_rows import act_and_mul_kernel, gather_rows_kernel, scatter_rows_kernel, sum_rows_kernel
from ._launch import activation_constants, check_spec, tile
from .align import local_experts, order_by_expert


@moecheck.kernel(
    "act_and_mul",
    backend="triton",
    name="triton/act_and_mul",
    numerics=moecheck.Numerics(act_times_up=INPUT),
    deterministic=True,
)
def act_and_mul(*, x: torch.Tensor, spec: moecheck.ExpertSpec) -> torch.Tensor:
    """act(gate) * up of each row, evaluated in fp32. x: [rows, 2I]. Returns [rows, I] in the dtype of x."""
    check_spec(spec)
    x, inter = x.contiguous(), x.shape[1] // 2
    h = x.new_empty(len(x), inter)
    if h.numel():
        block_r, block_w = tile(len(x), inter)
        act_and_mul_kernel[(triton.cdiv(len(x), block_r), triton.cdiv(inter, block_w))](
            x, h, len(x), inter, x.stride(0), h.stride(0),
            **activation_constants(spec), BLOCK_R=block_r, BLOCK_W=block_w,
        )  # fmt: skip
    return h


@moecheck.kernel("permute", backend="triton", name="triton/permute", deterministic=True)
def permute(
    *,
    hidden_states: torch.Tensor,
    topk_ids: torch.Tensor,
    num_experts: int,
    hidden_scale: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Rows by a stable sort of the slots by local expert; each token is read once and stored for all of its slots.

    hidden_states: [T, H]. topk_ids: [T, top_k] int32. hidden_scale: [T, *] float32, moved alike. expert_map: [E] int32.
    Returns permuted [T*top_k, H], permuted_scale or None, expert_starts [L+1] int32 and inv_permuted_idx [T, top_k]
    int32, -1 for a slot without an expert. Rows past expert_starts[-1] are unset.
    """
    starts, inverse = order_by_expert(topk_ids, expert_map, local_experts(num_experts, expert_map))
    scale = None if hidden_scale is None else scatter_rows(hidden_scale, inverse)
    return scatter_rows(hidden_states, inverse), scale, starts, inverse


@moecheck.kernel("shuffle_rows", backend="triton", name="triton/shuffle_rows", deterministic=True)
def shuffle_rows(*, x: torch.Tensor, row_map: torch.Tensor) -> torch.Tensor:
    """Row row_map[i] of x as row i. x: [R0, W]. row_map: [R] int32. Returns [R, W]."""
    x, row_map = x.contiguous(), row_map.contiguous()
    out = x.new_empty(len(row_map), x.shape[1])
    if out.numel():
        block_r, block_w = tile(len(out), x.shape[1])
        gather_rows_kernel[(triton.cdiv(len(out), block_r), triton.cdiv(x.shape[1], block_w))](
            x, row_map, out, len(out), x.shape[1], x.stride(0), out.stride(0), BLOCK_R=block_r, BLOCK_W=block_w
        )
    return out


@moecheck.kernel(
    "unpermute", backend="triton", name="triton/unpermute", numerics=moecheck.Numerics(), deterministic=True
)
def unpermute(*, permuted: torch.Tensor, topk_weights: torch.Tensor, inv_permuted_idx: torch.Tensor) -> torch.Tensor:
    """Each token's rows, weighted and added in fp32; negative indices add nothing.

    permuted: [R, H]. topk_weights: [T, top_k] float32. inv_permuted_idx: [T, top_k] int32. Returns [T, H].
    """
    return sum_rows(permuted, inv_permuted_idx, weights=topk_weights, dtype=permuted.dtype)


def scatter_rows(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Row t of x as row inverse[t, slot] of the result for every slot with one. Returns [T * top_k, W], else unset."""
    x, width = x.contiguous(), x.shape[1]
    out = x.new_empty(inverse.numel(), width)
    if out.numel():
        block_t, block_w = tile(len(x), width)
        column_tiles = triton.cdiv(width, block_w)
        scatter_rows_kernel[(triton.cdiv(len(x), block_t) * column_tiles,)](
            x, inverse, out, len(x), width, column_tiles, x.stride(0), out.stride(0),
            TOP_K=inverse.shape[1], BLOCK_T=block_t, BLOCK_W=block_w,
        )  # fmt: skip
    return out


def sum_rows(
    rows: torch.Tensor, index: torch.Tensor, *, weights: torch.Tensor | None = None, dtype: torch.dtype
) -> torch.Tensor:
    """Sum over slots of rows[index[t, slot]], weighted if given, in fp32; index -1 adds nothing.

    rows: [R, W]. index, weights: [T, k]. Returns [T, W] in `dtype`.
    """
    return _sum(rows, index, weights, None, dtype, by_slot=False)


def sum_slots(
    rows: torch.Tensor, topk_ids: torch.Tensor, expert_map: torch.Tensor | None, *, dtype: torch.dtype
) -> torch.Tensor:
    """Sum over slots of rows[t * top_k + slot] in fp32; rows of slots without an expert here are not read.

    rows: [T * top_k, W]. topk_ids: [T, top_k] int32. expert_map: [E] int32. Returns [T, W] in `dtype`.
    """
    return _sum(rows, topk_ids, None, expert_map, dtype, by_slot=True)


def _sum(
    rows: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor | None,
    expert_map: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    by_slot: bool,
) -> torch.Tensor:
    rows, index = rows.contiguous(), index.contiguous()
    tokens, width = len(index), rows.shape[1]
    out = torch.empty(tokens, width, dtype=dtype, device=rows.device)
    if out.numel():
        block_t, block_w = tile(tokens, width)
        sum_rows_kernel[(triton.cdiv(tokens, block_t), triton.cdiv(width, block_w))](
            rows, index, rows if weights is None else weights.contiguous(), index if expert_map is None else expert_map,
            out, tokens, width, rows.stride(0), out.stride(0),
            TOP_K=index.shape[1], WEIGHTED=weights is not None, BY_SLOT=by_slot, HAS_MAP=expert_map is not None,
            BLOCK_T=block_t, BLOCK_W=block_w,
        )  # fmt: skip
    return out
