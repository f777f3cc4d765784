"""Launches of fp8 experts as one kernel, and the numbers that are chosen by measuring."""

from __future__ import annotations

from dataclasses import replace

import torch

import moecheck
import triton
from moecheck.tuning import Configuration, Layer, Tuning, is_pinned

from ._jit_one_launch import one_launch_kernel
from ._launch import INTERPRETED, activation_constants, block_columns, block_rows, check_spec, layer_of
from ._quantised_launch import BLOCK, LARGEST, LEAST_AMAX, quantise_rows
from ._tiles import SHARED_MEMORY, VALUES_PER_THREAD
from .align import align_block_size

CHUNKS = {"halves": 0, "interleaved": 1, "interleaved_8": 8}
LEAST_ROWS = 16  # of tl.dot
SCHEME = "fp8-block"


def by_rule(layer: Layer, tokens: int) -> dict[str, int]:
    """Blocks of the mean rows of an expert; narrow tiles of h where there are few blocks, that all SMs have some."""
    mean = triton.next_power_of_2(max(1, tokens * layer.top_k // max(1, layer.experts)))
    rows = min(64, max(8, mean))
    few = tokens * layer.top_k < 64
    return {
        "block_m": rows, "up_n": 16 if few else 64, "down_n": 64 if few else 128, "num_warps": 4, "num_stages": 3,
    }  # fmt: skip


def problem(found: Configuration, layer: Layer) -> str | None:
    """Why a configuration cannot work, or None."""
    if layer.weights != SCHEME:
        return f"weights are of {SCHEME}, not {layer.weights}"
    rows = max(LEAST_ROWS, found["block_m"])
    for part, columns in (("up", 2 * found["up_n"]), ("down", found["down_n"])):
        memory = found["num_stages"] * (rows + columns) * BLOCK * 2  # codes, widened to fp16
        if memory > SHARED_MEMORY:
            return f"the tiles of {part} need {memory} bytes of shared memory, and a block has {SHARED_MEMORY}"
        values = 2 * rows * columns // (32 * found["num_warps"])  # a product and the sum of those before it
        if values > VALUES_PER_THREAD:
            return f"the tiles of {part} give a thread {values} values to add up"
    return None


TUNING = Tuning(
    kernel="triton/fp8_one_launch",
    values={
        "block_m": (8, 16, 32, 64, 128),
        "up_n": (16, 32, 64, 128),
        "down_n": (32, 64, 128, 256),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
    },
    start=by_rule,
    fallback="is left for the two-launch kernel triton/fp8_block where there is a choice",
    problem=problem,
)


def check(spec: moecheck.ExpertSpec) -> None:
    """Raise Unsupported for what the device code does not implement."""
    if spec.gate_up_layout not in CHUNKS:
        raise moecheck.Unsupported(f"takes gates and ups as {', '.join(CHUNKS)}, not {spec.gate_up_layout}")
    check_spec(replace(spec, gate_up_layout="halves"))


def one_launch(
    hidden_states: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    second: tuple[torch.Tensor, torch.Tensor],
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    spec: moecheck.ExpertSpec,
    *,
    ordered: bool,
    scales_in_turns: bool = False,
    native: bool = False,
    tiles: Configuration | None = None,
) -> torch.Tensor:
    """The weighted sum of each token's experts, [T, H] in the dtype of hidden_states.

    first, second: codes [L, 2I, H] and [L, H, I] with their scales of blocks of 128 x 128. ordered: slots are added in
    their order, else as they come. scales_in_turns: scales of w13 alternate between blocks of gates and of ups, as the
    rows do. native: fp8 tensor cores instead of fp16's. tiles: a configuration, instead of the measured one or the
    rule's.
    """
    check(spec)
    (w13, w13_scale), (w2, w2_scale) = ((c.contiguous(), s.contiguous()) for c, s in (first, second))
    (num_tokens, hidden), inter, top_k = hidden_states.shape, w2.shape[2], topk_ids.shape[1]
    if tiles is None:
        tiles = configuration(w13, w2, topk_ids)
    weights = topk_weights.contiguous()
    out = hidden_states.new_zeros(num_tokens, hidden)
    if not out.numel() or not topk_ids.numel():
        return out
    metadata = align_block_size(
        topk_ids=topk_ids,
        block_size=tiles["block_m"],
        num_experts=len(w13) if expert_map is None else len(expert_map),
        expert_map=expert_map,
    )
    on_input = spec.weight_on_input
    codes, x_scale = quantise_rows(hidden_states, BLOCK, w13.dtype, None, weights if on_input else None)
    num_pairs, num_blocks = topk_ids.numel(), len(metadata[1])
    up_tiles, down_tiles = triton.cdiv(inter, tiles["up_n"]), triton.cdiv(hidden, tiles["down_n"])
    h = out.new_empty(num_pairs, inter, dtype=torch.float32)
    if ordered:
        parts = out.new_empty(num_pairs, hidden, dtype=torch.float32)
    else:
        parts = out.new_zeros(num_tokens, hidden, dtype=torch.float32)
    counters = torch.zeros(1 + num_blocks + num_tokens * down_tiles, dtype=torch.int32, device=out.device)
    one_launch_kernel[(num_blocks * (up_tiles + down_tiles),)](
        codes, x_scale, w13, w13_scale, w2, w2_scale, weights, topk_ids.contiguous(),
        topk_ids if expert_map is None else expert_map, h, parts, out,
        counters, counters[1:], counters[1 + num_blocks :], *metadata, num_pairs, num_blocks, inter, hidden,
        codes.stride(0), x_scale.stride(0), w13.stride(0), w13.stride(1), w13_scale.stride(0), w13_scale.stride(1),
        w2.stride(0), w2.stride(1), w2_scale.stride(0), w2_scale.stride(1),
        TOP_K=top_k, SLOTS=triton.next_power_of_2(top_k), HAS_MAP=expert_map is not None, WEIGHTED=not on_input,
        ORDERED=ordered, CHUNK=CHUNKS[spec.gate_up_layout], SCALES_IN_TURNS=scales_in_turns, GROUP=BLOCK,
        NATIVE=native, LARGEST=LARGEST[w13.dtype], LEAST_AMAX=LEAST_AMAX, **_activation(spec),
        BLOCK_M=tiles["block_m"], ROWS=max(LEAST_ROWS, tiles["block_m"]), UP_N=tiles["up_n"], DOWN_N=tiles["down_n"],
        BLOCK_K=min(BLOCK, block_columns(hidden)) if INTERPRETED else BLOCK,
        BLOCK_H=min(BLOCK, max(LEAST_ROWS, triton.next_power_of_2(inter))),
        num_warps=tiles["num_warps"], num_stages=tiles["num_stages"],
    )  # fmt: skip
    return out


def configuration(w13: torch.Tensor, w2: torch.Tensor, topk_ids: torch.Tensor) -> Configuration:
    """The measured configuration of a layer, or the rule's; few large tiles under the interpreter."""
    if INTERPRETED and not is_pinned():
        return {
            "block_m": block_rows(topk_ids.numel(), len(w13)), "up_n": block_columns(w2.shape[2]) // 2 or LEAST_ROWS,
            "down_n": block_columns(w2.shape[1]), "num_warps": 4, "num_stages": 2,
        }  # fmt: skip
    layer = layer_of(w13, w2, topk_ids, weights=SCHEME)
    return TUNING.configuration(layer, len(topk_ids)) or by_rule(layer, len(topk_ids))


def _activation(spec: moecheck.ExpertSpec) -> dict[str, object]:
    return {name: value for name, value in activation_constants(spec).items() if name != "INTERLEAVED"}
