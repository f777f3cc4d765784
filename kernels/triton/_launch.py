"""Tile sizes and compile-time constants that the launches share."""

from __future__ import annotations

import os
from functools import cache

import torch

import moecheck
import triton
from moecheck.tuning import Layer, is_pinned

from ._tiles import Configuration, Tiles, tiles_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter pays per operation, not per element.
LARGEST_COLUMNS = 256 if INTERPRETED else 64
ROW_ELEMENTS = 8192 if INTERPRETED else 2048
FORMATS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def block_rows(pairs: int, num_experts: int) -> int:
    """Rows of a block: the mean rows of an expert, as a power of two from 16 (the least of tl.dot) to 64."""
    mean: int = triton.next_power_of_2(max(1, pairs // max(1, num_experts)))
    return min(64, max(16, mean))


def block_columns(width: int) -> int:
    """Columns, or terms of a sum, of a block: a power of two from 16 (the least of tl.dot) to LARGEST_COLUMNS."""
    columns: int = triton.next_power_of_2(width)
    return min(LARGEST_COLUMNS, max(16, columns))


def tiles_of_experts(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, topk_ids: torch.Tensor) -> Configuration:
    """How both GEMMs are cut: measured for the layer on a device, few large tiles under the interpreter."""
    if x.is_cuda or is_pinned():
        return tiles_of(layer_of(w13, w2, topk_ids, weights=FORMATS[x.dtype]), len(topk_ids))
    small = {"group_m": 2, "num_warps": 4, "num_stages": 2}
    columns = {name: block_columns(size) for name, size in (("hidden", w2.shape[1]), ("inter", w2.shape[2]))}
    return Configuration(
        block_m=block_rows(topk_ids.numel(), len(w13)),
        gate_up=Tiles(block_n=columns["inter"], block_k=columns["hidden"], **small),
        down=Tiles(block_n=columns["hidden"], block_k=columns["inter"], **small),
    )


def layer_of(w13: torch.Tensor, w2: torch.Tensor, topk_ids: torch.Tensor, *, weights: str) -> Layer:
    """What configurations are measured for. weights: format or scheme."""
    device = device_name(w13.device.index) if w13.is_cuda else "Triton's interpreter"
    return Layer(
        device=device, experts=len(w13), intermediate=w2.shape[2], hidden=w2.shape[1], top_k=topk_ids.shape[1],
        weights=weights,
    )  # fmt: skip


def constants(tiles: Tiles, block_m: int, *, columns: int, terms: int) -> dict[str, object]:
    """The launch's arguments of one GEMM that computes `columns` sums of `terms` products a row."""
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "group_m": tiles.group_m,
        "EVEN_N": columns % tiles.block_n == 0,
        "EVEN_K": terms % tiles.block_k == 0,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def least_rows(block_m: int) -> int:
    """Rows that are multiplied of a block whose last ones are padding: half of it, from what wgmma takes at least."""
    return max(block_m // 2, 16 if INTERPRETED else 64)


def tile(rows: int, width: int, *, elements: int = ROW_ELEMENTS) -> tuple[int, int]:
    """Rows and columns of a row-wise kernel's tile: as much of the width as fits, at most `elements` elements."""
    columns = min(1024, triton.next_power_of_2(max(16, width)))
    return max(1, min(triton.next_power_of_2(max(1, rows)), elements // columns)), columns


def check_spec(spec: moecheck.ExpertSpec) -> None:
    """Raise Unsupported for what the activation's device code does not implement."""
    if not spec.gated:
        raise moecheck.Unsupported("implements gated experts only")
    if spec.gate_up_layout not in ("halves", "interleaved"):
        raise moecheck.Unsupported(f"takes gates and ups as halves or interleaved, not {spec.gate_up_layout}")
    if spec.activation not in ("silu", "gelu_tanh"):
        raise moecheck.Unsupported(f"implements the activations silu and gelu_tanh, not {spec.activation}")
    if spec.swiglu_limit is not None and spec.limit_position == "after":
        raise moecheck.Unsupported("limits the activation's inputs, not its output")


def activation_constants(spec: moecheck.ExpertSpec) -> dict[str, object]:
    """The activation's tl.constexpr arguments; LIMIT = 0 stands for none."""
    return {
        "INTERLEAVED": spec.gate_up_layout == "interleaved",
        "LIMIT": spec.swiglu_limit or 0.0,
        "ALPHA": spec.swiglu_alpha,
        "BETA": spec.swiglu_beta,
        "ACTIVATION": spec.activation,
    }


@cache
def device_name(index: int | None) -> str:
    """Of a CUDA device."""
    return torch.cuda.get_device_name(index)
