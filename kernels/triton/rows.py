"""Row-wise ops in Triton: activation, permute and unpermute, host side."""

from __future__ import annotations

import torch

import moecheck
import triton
from moecheck.numerics import INPUT

from ..torch.index_add import local_ids
from ._jit_rows import act_and_mul_kernel, gather_rows_kernel, sum_rows_kernel
from ._launch import activation_constants, check_spec, tile


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
    *, hidden_states: torch.Tensor, topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, None, torch.Tensor, torch.Tensor]:
    """Rows by a stable sort of the slots by local expert; the order on the host's side, the rows by Triton.

    hidden_states: [T, H]. topk_ids: [T, top_k] int32. expert_map: [E] int32. Returns permuted [T*top_k, H], None,
    expert_starts [L+1] int32 and inv_permuted_idx [T, top_k] int32, -1 for a slot without an expert. Rows of permuted
    past expert_starts[-1] are unset.
    """
    experts = num_experts if expert_map is None else int((expert_map >= 0).sum())
    local = local_ids(topk_ids, expert_map).flatten()
    ids, order = local.where(local >= 0, experts).sort(stable=True)
    starts = torch.searchsorted(ids, torch.arange(experts + 1, device=ids.device)).to(torch.int32)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device).where(ids < experts, -1)

    x, used, width = hidden_states.contiguous(), int(starts[-1]), hidden_states.shape[1]
    out = x.new_empty(len(order), width)
    if used:
        block_r, block_w = tile(used, width)
        gather_rows_kernel[(triton.cdiv(used, block_r), triton.cdiv(width, block_w))](
            x, order // topk_ids.shape[1], out, used, width, x.stride(0), out.stride(0),
            BLOCK_R=block_r, BLOCK_W=block_w,
        )  # fmt: skip
    return out, None, starts, inverse.view(topk_ids.shape).to(torch.int32)


@moecheck.kernel(
    "unpermute", backend="triton", name="triton/unpermute", numerics=moecheck.Numerics(), deterministic=True
)
def unpermute(*, permuted: torch.Tensor, topk_weights: torch.Tensor, inv_permuted_idx: torch.Tensor) -> torch.Tensor:
    """Each token's rows, weighted and added in fp32; negative indices add nothing.

    permuted: [R, H]. topk_weights: [T, top_k] float32. inv_permuted_idx: [T, top_k] int32. Returns [T, H].
    """
    return sum_rows(permuted, inv_permuted_idx, weights=topk_weights, dtype=permuted.dtype)


def sum_rows(
    rows: torch.Tensor, index: torch.Tensor, *, weights: torch.Tensor | None = None, dtype: torch.dtype
) -> torch.Tensor:
    """Sum over slots of rows[index[t, slot]], weighted if given, in fp32; index -1 adds nothing.

    rows: [R, W]. index, weights: [T, k]. Returns [T, W] in `dtype`.
    """
    rows, index = rows.contiguous(), index.contiguous()
    tokens, width = len(index), rows.shape[1]
    out = torch.empty(tokens, width, dtype=dtype, device=rows.device)
    if out.numel():
        block_t, block_w = tile(tokens, width)
        sum_rows_kernel[(triton.cdiv(tokens, block_t), triton.cdiv(width, block_w))](
            rows, index, rows if weights is None else weights.contiguous(), out, tokens, width,
            rows.stride(0), out.stride(0),
            TOP_K=index.shape[1], WEIGHTED=weights is not None, BLOCK_T=block_t, BLOCK_W=block_w,
        )  # fmt: skip
    return out
