"""Experts as grouped GEMMs over blocks of tokens of one expert each: host side."""

from __future__ import annotations

import torch

import moecheck
import triton
from moecheck.numerics import INPUT

from ._jit_gemm import gate_up_kernel, grouped_gemm_kernel
from ._launch import activation_constants, check_spec, constants, least_rows, tiles_of_experts
from ._tiles import TUNING, Configuration
from .align import align_block_size
from .rows import act_and_mul, sum_slots


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/fused_gate_up",
    numerics=moecheck.Numerics(act_times_up=INPUT, weighted=INPUT),
    deterministic=True,
    tuning=TUNING,
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
    """Two GEMMs, the first with gate, up and activation, the second storing weighted rows, and their sum.

    hidden_states: [T, H]. w13: [L, 2I, H]. w2: [L, H, I]. topk_weights: [T, top_k] float32. topk_ids: [T, top_k] int32.
    w13_bias: [L, 2I]. w2_bias: [L, H]. expert_map: [E] int32, global to local id. Returns [T, H].
    """
    check_spec(spec)
    blocks = Blocks(hidden_states, w13, w2, topk_ids, topk_weights, expert_map=expert_map)
    hidden = blocks.gate_up(hidden_states, w13, w13_bias, spec)
    weighted = blocks.gemm(hidden, w2, w2_bias, part="down", weighted=not spec.weight_on_input)
    return sum_slots(weighted, topk_ids, expert_map, dtype=hidden_states.dtype)


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
    blocks = Blocks(hidden_states, w13, w2, topk_ids, topk_weights, expert_map=expert_map)
    gate_up = blocks.gemm(hidden_states, w13, w13_bias, part="gate_up", weighted=spec.weight_on_input)
    hidden = act_and_mul(x=gate_up, spec=spec)
    weighted = blocks.gemm(hidden, w2, w2_bias, part="down", weighted=not spec.weight_on_input)
    return sum_slots(weighted, topk_ids, expert_map, dtype=hidden_states.dtype)


class Blocks:
    """The (token, slot) pairs of a call, sorted into blocks of one expert each, and the GEMMs over them."""

    def __init__(
        self,
        x: torch.Tensor,
        w13: torch.Tensor,
        w2: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        *,
        expert_map: torch.Tensor | None,
        tiles: Configuration | None = None,
    ) -> None:
        self.tiles = tiles or tiles_of_experts(x, w13, w2, topk_ids)
        self.topk_ids, self.topk_weights, self.block_m = topk_ids, topk_weights.contiguous(), self.tiles.block_m
        self.metadata = align_block_size(
            topk_ids=topk_ids,
            block_size=self.block_m,
            num_experts=len(w13) if expert_map is None else len(expert_map),
            expert_map=expert_map,
        )

    def gate_up(
        self, x: torch.Tensor, w13: torch.Tensor, bias: torch.Tensor | None, spec: moecheck.ExpertSpec
    ) -> torch.Tensor:
        """act(gate) * up of every pair: [T * top_k, I] in the dtype of x; rows of pairs without an expert are unset."""
        inter, terms = w13.shape[1] // 2, w13.shape[2]
        x, w13 = x.contiguous(), w13.contiguous()
        h = x.new_empty(self.topk_ids.numel(), inter)
        if h.numel():
            gate_up_kernel[self._grid(inter, self.tiles.gate_up.block_n)](
                x, w13, x if bias is None else bias.contiguous(), self.topk_weights, h, *self.metadata,
                len(h), inter, terms, x.stride(0), w13.stride(0), w13.stride(1), 2 * inter, h.stride(0),
                TOP_K=self.topk_ids.shape[1], HAS_BIAS=bias is not None, WEIGHTED=spec.weight_on_input,
                LEAST_M=least_rows(self.block_m),
                **activation_constants(spec), **constants(self.tiles.gate_up, self.block_m, columns=inter, terms=terms),
            )  # fmt: skip
        return h

    def gemm(
        self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, *, part: str, weighted: bool
    ) -> torch.Tensor:
        """W x + bias of every pair, weighted or not: [T * top_k, n]; rows of pairs without an expert are unset.

        part: `gate_up`, whose x has a row for each token and is what a weight multiplies, or `down`, whose x has one
        for each pair and whose output it multiplies.
        """
        x, w = x.contiguous(), w.contiguous()
        outputs, terms = w.shape[1:]
        y = x.new_empty(self.topk_ids.numel(), outputs)
        tiles = self.tiles.down if part == "down" else self.tiles.gate_up
        if y.numel():
            grouped_gemm_kernel[self._grid(outputs, tiles.block_n)](
                x, w, x if bias is None else bias.contiguous(), self.topk_weights, y, *self.metadata,
                len(y), outputs, terms, x.stride(0), w.stride(0), w.stride(1), outputs, y.stride(0),
                PAIRS_PER_ROW=1 if part == "down" else self.topk_ids.shape[1], HAS_BIAS=bias is not None,
                WEIGHTED=weighted and part == "down", ON_INPUT=weighted and part == "gate_up",
                LEAST_M=least_rows(self.block_m),
                **constants(tiles, self.block_m, columns=outputs, terms=terms),
            )  # fmt: skip
        return y

    def _grid(self, columns: int, block_n: int) -> tuple[int]:
        return (len(self.metadata[1]) * triton.cdiv(columns, block_n),)
