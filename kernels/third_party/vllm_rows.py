"""vLLM's CUDA kernels that align, permute, add up and activate rows."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

import moecheck
from moecheck.numerics import INPUT

from ._require import require_ids
from ._vllm import (
    ACTIVATIONS,
    FUSED_MOE,
    LIBRARY,
    OPS,
    activation,
    require_slots,
    require_tokens,
    require_valid_ids,
)

_LAYERS = "vllm.model_executor.layers.fused_moe"
ALIGN: Any = import_module(f"{_LAYERS}.moe_align_block_size")
PERMUTE: Any = import_module(f"{_LAYERS}.moe_permute_unpermute")
UTILS: Any = import_module(f"{_LAYERS}.utils")
SUMS = tuple(moecheck.MoESpec(routing=moecheck.RoutingSpec(top_k=k, renormalize=True)) for k in (8, 2))
LOW_SUMS = tuple(moecheck.MoESpec(routing=moecheck.RoutingSpec(top_k=k, renormalize=True)) for k in (4, 3))
Aligned = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@moecheck.kernel("align_block_size", backend="cuda", name="vllm/moe_align_block_size")
def moe_align_block_size(
    *, topk_ids: torch.Tensor, block_size: int, num_experts: int, expert_map: torch.Tensor | None = None
) -> Aligned:
    """Blocks of local experts only, as fused_experts asks for them. Shapes as in align_block_size.

    0.22 counts an id of -1 as the last expert; with a map it reads in front of the map, which ends the process.
    """
    require_tokens(topk_ids)
    if expert_map is not None:
        require_valid_ids(topk_ids)
    sorted_ids, experts, padded = ALIGN.moe_align_block_size(
        topk_ids, block_size, num_experts, expert_map, ignore_invalid_experts=True
    )
    return sorted_ids, experts, padded


@moecheck.kernel("expert_counts", backend="triton", name="vllm/count_expert_num_tokens", deterministic=True)
def count_expert_num_tokens(
    *, topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows of each local expert: [L] int32. topk_ids: [T, top_k] int32."""
    experts = num_experts if expert_map is None else int((expert_map >= 0).sum())
    require_tokens(topk_ids)
    counts: torch.Tensor = UTILS.count_expert_num_tokens(topk_ids, experts, expert_map)
    return counts


@moecheck.kernel("permute", backend="cuda", name="vllm/moe_permute", deterministic=True)
def moe_permute(
    *,
    hidden_states: torch.Tensor,
    topk_ids: torch.Tensor,
    num_experts: int,
    hidden_scale: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Rows by a radix sort of the slots. Shapes as in permute."""
    require_tokens(topk_ids)
    require_ids(topk_ids, f"moe_permute of {LIBRARY}")
    _require_16_bytes(hidden_states)
    experts = num_experts if expert_map is None else int((expert_map >= 0).sum())
    permuted, scale, starts, inverse, _ = PERMUTE.moe_permute(
        hidden_states.contiguous(), hidden_scale, topk_ids, num_experts, experts, expert_map
    )
    # The rows of slots without an expert lie behind all others; vLLM's unpermute knows them by their place.
    inverse = inverse.where(inverse < starts[-1], -1).view(topk_ids.shape)
    return permuted, scale, starts.to(torch.int32), inverse


@moecheck.kernel("unpermute", backend="cuda", name="vllm/moe_unpermute", numerics=moecheck.Numerics())
def moe_unpermute(
    *, permuted: torch.Tensor, topk_weights: torch.Tensor, inv_permuted_idx: torch.Tensor
) -> torch.Tensor:
    """Each token's rows, weighted and added in fp32. Shapes as in unpermute."""
    require_tokens(topk_weights)
    _require_16_bytes(permuted)
    require_ids(inv_permuted_idx, LIBRARY)
    out = permuted.new_empty(len(topk_weights), permuted.shape[1])
    PERMUTE.moe_unpermute(out, permuted.contiguous(), topk_weights, inv_permuted_idx.flatten())
    return out


@moecheck.kernel(
    "unpermute", backend="cuda", name="vllm/moe_sum", specs=SUMS, numerics=moecheck.Numerics(weighted=INPUT)
)
def moe_sum(*, permuted: torch.Tensor, topk_weights: torch.Tensor, inv_permuted_idx: torch.Tensor) -> torch.Tensor:
    """Two slots, or more than four: added in fp32. The rows are gathered and weighted here, and stored."""
    require_slots(inv_permuted_idx, low_sum=False)
    return _sum(permuted, topk_weights, inv_permuted_idx)


@moecheck.kernel(
    "unpermute",
    backend="cuda",
    name="vllm/moe_sum_low",
    specs=LOW_SUMS,
    numerics=moecheck.Numerics(weighted=INPUT, combine=INPUT, combine_order="slot"),
)
def moe_sum_low(*, permuted: torch.Tensor, topk_weights: torch.Tensor, inv_permuted_idx: torch.Tensor) -> torch.Tensor:
    """Three or four slots: added in the input's format. As moe_sum."""
    require_slots(inv_permuted_idx, low_sum=True)
    return _sum(permuted, topk_weights, inv_permuted_idx)


@moecheck.kernel("shuffle_rows", backend="cuda", name="vllm/shuffle_rows", deterministic=True)
def shuffle_rows(*, x: torch.Tensor, row_map: torch.Tensor) -> torch.Tensor:
    """Row row_map[i] of x as row i. x: [R0, W]. row_map: [R] int32. Returns [R, W]."""
    require_tokens(row_map)
    _require_16_bytes(x)
    out: torch.Tensor = OPS.shuffle_rows(x.contiguous(), row_map)
    return out


@moecheck.kernel(
    "act_and_mul", backend="cuda", name="vllm/act_and_mul", numerics=moecheck.Numerics(act=INPUT), deterministic=True
)
def act_and_mul(*, x: torch.Tensor, spec: moecheck.ExpertSpec) -> torch.Tensor:
    """silu, gelu or gelu_tanh of the first half times the second, act stored on its own. x: [R, 2I]."""
    if spec.activation not in ACTIVATIONS or spec.gate_up_layout != "halves":
        raise moecheck.Unsupported("vLLM's swigluoai and relu2 store otherwise than declared here")
    require_tokens(x)
    name, rows = activation(spec), x.contiguous()
    h: torch.Tensor = FUSED_MOE.apply_moe_activation(name, rows.new_empty(len(rows), rows.shape[1] // 2), rows)
    return h


def _sum(permuted: torch.Tensor, topk_weights: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    require_tokens(index)
    require_ids(index, LIBRARY)
    slots = (permuted[index.long()].float() * topk_weights[..., None]).to(permuted.dtype)
    out = permuted.new_empty(len(index), permuted.shape[1])
    OPS.moe_sum(slots, out)
    return out


def _require_16_bytes(rows: torch.Tensor) -> None:
    size = rows.shape[1] * rows.element_size()
    if size % 16:
        raise moecheck.Unsupported(f"vLLM moves rows of a multiple of 16 bytes, not {size}")
