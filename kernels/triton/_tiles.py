"""Which tiles the grouped GEMMs use: measured ones for known layers (moecheck.tuning), else a rule."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from moecheck.tuning import Configuration as Numbers
from moecheck.tuning import Layer, Tuning

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
SHARED_MEMORY = 232448  # bytes that a block may have on compute capability 9.0 (CUDA C++ Programming Guide)
VALUES_PER_THREAD = 256  # of the accumulator; a thread has 255 registers
PARTS = ("gate_up", "down")
OF_A_TILE = {
    "block_n": (16, 32, 64, 128, 256),
    "block_k": (16, 32, 64, 128, 256),
    "num_warps": (4, 8, 2, 1, 16),
    "num_stages": (3, 4, 2, 5, 1),
    "group_m": (1, 4, 8, 16, 64),
}
RULE = "cuts blocks by the mean rows of an expert, 16 to 128, into tiles that fill shared memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How one GEMM is cut: columns and terms of a tile, blocks that share columns, warps and pipeline stages."""

    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Rows of a block, and the tiles of both GEMMs. gate_up.block_n counts columns of h, each of a gate and an up."""

    block_m: int
    gate_up: Tiles
    down: Tiles

    def numbers(self) -> dict[str, int]:
        """Each number by its name, `gate_up_block_n` for example."""
        found = {"block_m": self.block_m}
        for part in PARTS:
            found |= {f"{part}_{f.name}": getattr(getattr(self, part), f.name) for f in fields(Tiles)}
        return found


def from_numbers(numbers: Numbers) -> Configuration:
    """The inverse of `Configuration.numbers`."""
    parts: dict[str, Any] = {
        part: Tiles(**{f.name: numbers[f"{part}_{f.name}"] for f in fields(Tiles)}) for part in PARTS
    }
    return Configuration(block_m=numbers["block_m"], **parts)


def tiles_of(layer: Layer, tokens: int) -> Configuration:
    """The measured tiles of the nearest number of tokens, or the rule's where the layer was not measured.

    fp16 uses what was measured for bf16.
    """
    stored = layer if layer.weights != "fp16" else _as_bf16(layer)
    found = TUNING.configuration(stored, tokens)
    if found is None:
        return by_rule(experts=layer.experts, itemsize=ITEMSIZE[layer.weights], pairs=tokens * layer.top_k)
    return from_numbers(found)


def by_rule(*, experts: int, itemsize: int, pairs: int) -> Configuration:
    """RULE in full: wide tiles where experts have many rows, more stages of smaller tiles where they have few."""
    mean = max(1, pairs // max(1, experts))
    if itemsize > 2:
        tiles = Tiles(block_n=32, block_k=32, group_m=8, num_warps=4, num_stages=2)
        return Configuration(block_m=min(64, _at_least_16(mean)), gate_up=tiles, down=tiles)
    block_m = min(128, _at_least_16(mean))
    if block_m <= 32:
        first = Tiles(block_n=32, block_k=128, group_m=4, num_warps=4, num_stages=4)
        second = Tiles(block_n=64, block_k=128, group_m=4, num_warps=4, num_stages=4)
    elif block_m == 64:
        first = Tiles(block_n=64, block_k=64, group_m=4, num_warps=4, num_stages=4)
        second = Tiles(block_n=128, block_k=64, group_m=4, num_warps=4, num_stages=4)
    else:
        first = Tiles(block_n=128, block_k=64, group_m=16, num_warps=8, num_stages=4)
        second = Tiles(block_n=256, block_k=64, group_m=16, num_warps=8, num_stages=4)
    return Configuration(block_m=block_m, gate_up=first, down=second)


def problem(numbers: Numbers, layer: Layer) -> str | None:
    """Why a configuration cannot work, or None."""
    if layer.weights not in ITEMSIZE:
        return f"weights are of {', '.join(ITEMSIZE)}, not {layer.weights}"
    found, itemsize = from_numbers(numbers), ITEMSIZE[layer.weights]
    for part, tiles, rows in (
        ("gate_up", found.gate_up, 2 * found.gate_up.block_n),
        ("down", found.down, found.down.block_n),
    ):
        memory = tiles.num_stages * (found.block_m + rows) * tiles.block_k * itemsize
        if memory > SHARED_MEMORY:
            return f"{part} needs {memory} bytes of shared memory, and a block has {SHARED_MEMORY}"
        if found.block_m * rows > VALUES_PER_THREAD * 32 * tiles.num_warps:
            return f"{part} gives a thread {found.block_m * rows // (32 * tiles.num_warps)} values to add up"
    return None


def _start(layer: Layer, tokens: int) -> Numbers:
    return by_rule(experts=layer.experts, itemsize=ITEMSIZE[layer.weights], pairs=tokens * layer.top_k).numbers()


def _as_bf16(layer: Layer) -> Layer:
    return Layer(**{**{f.name: getattr(layer, f.name) for f in fields(Layer)}, "weights": "bf16"})


def _at_least_16(rows: int) -> int:
    return max(16, 1 << (rows - 1).bit_length())


TUNING = Tuning(
    kernel="triton/fused_gate_up",
    values={
        "block_m": (16, 32, 64, 128),
        **{f"{part}_{name}": allowed for part in PARTS for name, allowed in OF_A_TILE.items()},
    },
    start=_start,
    fallback=RULE,
    problem=problem,
    packaged=Path(__file__).with_name("tuned_experts.json"),
)
