"""Experts as grouped GEMMs over blocks of tokens of one expert each: host side."""

from __future__ import annotations

import torch

import moecheck
import triton
from moecheck.numerics import INPUT

from ..torch.plan import align_block_size
from ._jit_gemm import gate_up_kernel, grouped_gemm_kernel
from ._launch import activation_constants, block_columns, block_rows, check_spec
from .rows import act_and_mul, sum_rows


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/fused_gate_up",
    numerics=moecheck.Numerics(act_times_up=INPUT),
    deterministic=True,
)
def fused_gate_up(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Two GEMMs: gate, up and activation in one launch; the second keeps its weighted rows in fp32 for the sum.

    hidden_states: [T, H]. w13: [L, 2I, H]. w2: [L, H, I]. topk_weights: [T, top_k] float32. topk_ids: [T, top_k] int32.
    w13_bias: [L, 2I]. w2_bias: [L, H]. expert_map: [E] int32, global to local id. Returns [T, H].
    """
    check_spec(spec)
    blocks = Blocks(topk_ids, num_experts=len(w13), expert_map=expert_map)
    hidden = blocks.gate_up(hidden_states, w13, w13_bias, spec)
    weighted = blocks.gemm(hidden, w2, w2_bias, weights=topk_weights, pairs_per_row=1, dtype=torch.float32)
    return sum_rows(weighted, blocks.slots(), dtype=hidden_states.dtype)


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/separate",
    numerics=moecheck.Numerics(gate_up=INPUT, act_times_up=INPUT, weighted=INPUT),
    deterministic=True,
)
def separate(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """GEMM, activation, GEMM and sum in launches of their own, each storing the input's dtype. As fused_gate_up."""
    check_spec(spec)
    blocks = Blocks(topk_ids, num_experts=len(w13), expert_map=expert_map)
    dtype, top_k = hidden_states.dtype, topk_ids.shape[1]
    gate_up = blocks.gemm(hidden_states, w13, w13_bias, weights=None, pairs_per_row=top_k, dtype=dtype)
    hidden = act_and_mul(x=gate_up, spec=spec)
    weighted = blocks.gemm(hidden, w2, w2_bias, weights=topk_weights, pairs_per_row=1, dtype=dtype)
    return sum_rows(weighted, blocks.slots(), dtype=dtype)


class Blocks:
    """The (token, slot) pairs of a call, sorted into blocks of one expert each, and the GEMMs over them."""

    def __init__(self, topk_ids: torch.Tensor, *, num_experts: int, expert_map: torch.Tensor | None) -> None:
        count = num_experts if expert_map is None else len(expert_map)
        self.topk_ids, self.block_m = topk_ids, block_rows(topk_ids.numel(), count)
        self.metadata = align_block_size(
            topk_ids=topk_ids, block_size=self.block_m, num_experts=count, expert_map=expert_map
        )

    def slots(self) -> torch.Tensor:
        """Row of each slot in a [T * top_k, ...] array: [T, top_k] int32."""
        ids = self.topk_ids
        return torch.arange(ids.numel(), dtype=torch.int32, device=ids.device).view_as(ids)

    def gate_up(
        self, x: torch.Tensor, w13: torch.Tensor, bias: torch.Tensor | None, spec: moecheck.ExpertSpec
    ) -> torch.Tensor:
        """act(gate) * up of every pair: [T * top_k, I] in the dtype of x; rows of pairs without an expert are unset."""
        inter, hidden = w13.shape[1] // 2, w13.shape[2]
        x, w13 = x.contiguous(), w13.contiguous()
        h = x.new_empty(self.topk_ids.numel(), inter)
        if h.numel():
            gate_up_kernel[self._grid(inter)](
                x, w13, x if bias is None else bias.contiguous(), h, *self.metadata, len(h), inter, hidden,
                x.stride(0), w13.stride(0), w13.stride(1), 2 * inter, h.stride(0),
                TOP_K=self.topk_ids.shape[1], HAS_BIAS=bias is not None,
                **activation_constants(spec), **self._tiles(inter, hidden),
            )  # fmt: skip
        return h

    def gemm(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        weights: torch.Tensor | None,
        pairs_per_row: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """W x + bias of every pair, weighted if given: [T * top_k, n] in `dtype`; 0 for pairs without an expert."""
        x, w = x.contiguous(), w.contiguous()
        outputs = w.shape[1]
        y = torch.zeros(self.topk_ids.numel(), outputs, dtype=dtype, device=x.device)
        if y.numel():
            grouped_gemm_kernel[self._grid(outputs)](
                x, w, x if bias is None else bias.contiguous(), x if weights is None else weights.contiguous(), y,
                *self.metadata, len(y), outputs, w.shape[2],
                x.stride(0), w.stride(0), w.stride(1), outputs, y.stride(0),
                PAIRS_PER_ROW=pairs_per_row, HAS_BIAS=bias is not None, WEIGHTED=weights is not None,
                **self._tiles(outputs, w.shape[2]),
            )  # fmt: skip
        return y

    def _grid(self, columns: int) -> tuple[int, int]:
        return len(self.metadata[1]), triton.cdiv(columns, block_columns(columns))

    def _tiles(self, columns: int, inputs: int) -> dict[str, int]:
        return {"BLOCK_M": self.block_m, "BLOCK_N": block_columns(columns), "BLOCK_K": block_columns(inputs)}
