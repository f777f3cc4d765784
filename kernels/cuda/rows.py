"""Rows gathered by expert and added up again, in CUDA C++, host side."""

from __future__ import annotations

import torch

import moecheck
from moecheck.numerics import INPUT

from ._library import UNAVAILABLE as UNAVAILABLE
from ._library import library
from ._matrix import as_int32, side_by_side
from ._pairs import local_experts, planned


@moecheck.kernel("permute", backend="cuda", name="cuda/moe_permute", deterministic=True, batch_invariant=True)
def moe_permute(
    *,
    hidden_states: torch.Tensor,
    topk_ids: torch.Tensor,
    num_experts: int,
    hidden_scale: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Rows by a stable sort of the slots by local expert; each token's row is read once.

    hidden_states: [T, H] of any dtype, rows at any distance. topk_ids: [T, top_k] int32. hidden_scale: [T, *] float32,
    moved alike. expert_map: [E] int32. Returns permuted [T*top_k, H], permuted_scale or None, expert_starts [L+1] int32
    and inv_permuted_idx [T, top_k] int32, -1 for a slot without an expert. Rows past expert_starts[-1] are unset. Waits
    for the device only to count the experts of a map.
    """
    experts = local_experts(num_experts, expert_map)
    plan = planned(topk_ids, expert_map, num_experts=num_experts, buckets=experts)
    inverse = torch.empty(topk_ids.shape, dtype=torch.int32, device=topk_ids.device)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=topk_ids.device)
    plan.place(starts=starts, position_of_pair=inverse)
    scale = None if hidden_scale is None else _scattered(hidden_scale, inverse)
    return _scattered(hidden_states, inverse), scale, starts, inverse


@moecheck.kernel(
    "unpermute",
    backend="cuda",
    name="cuda/moe_unpermute",
    numerics=moecheck.Numerics(out=INPUT),
    deterministic=True,
    batch_invariant=True,
)
def moe_unpermute(
    *, permuted: torch.Tensor, topk_weights: torch.Tensor, inv_permuted_idx: torch.Tensor
) -> torch.Tensor:
    """Each token's rows, weighted and added in fp32 in the order of the slots, rounded once.

    permuted: [R, H] float32, float16 or bfloat16, rows at any distance. topk_weights: [T, top_k] float32.
    inv_permuted_idx: [T, top_k] int32; a negative index adds nothing. Returns [T, H]. Never waits for the device.
    """
    rows = side_by_side(permuted)
    out = torch.empty(len(inv_permuted_idx), rows.shape[1], dtype=rows.dtype, device=rows.device)
    library().sum_rows(rows, topk_weights.contiguous(), as_int32(inv_permuted_idx), out)
    return out


@moecheck.kernel("shuffle_rows", backend="cuda", name="cuda/shuffle_rows", deterministic=True, batch_invariant=True)
def shuffle_rows(*, x: torch.Tensor, row_map: torch.Tensor) -> torch.Tensor:
    """Row row_map[i] of x as row i; rows whose index is -1 are unset.

    x: [R0, W] of any dtype, rows at any distance. row_map: [R] int32. Returns [R, W]. Never waits for the device.
    """
    x = side_by_side(x)
    out = torch.empty(len(row_map), x.shape[1], dtype=x.dtype, device=x.device)
    library().gather_rows(x, as_int32(row_map), out)
    return out


def _scattered(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x[t] at each of positions[t]. x: [T, W]. positions: [T, top_k] int32, negative ones left out."""
    x = side_by_side(x)
    out = torch.empty(positions.numel(), x.shape[1], dtype=x.dtype, device=x.device)
    library().scatter_rows(x, positions, out)
    return out
