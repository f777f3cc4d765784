"""Tile sizes and compile-time constants that the launches share."""

from __future__ import annotations

import os

import moecheck
import triton

# The interpreter pays per operation, not per element.
LARGEST_COLUMNS = 256 if os.environ.get("TRITON_INTERPRET") == "1" else 64


def block_rows(pairs: int, num_experts: int) -> int:
    """Rows of a block: the mean rows of an expert, as a power of two from 16 (the least of tl.dot) to 64."""
    mean: int = triton.next_power_of_2(max(1, pairs // max(1, num_experts)))
    return min(64, max(16, mean))


def block_columns(width: int) -> int:
    """Columns, or terms of a sum, of a block: a power of two from 16 (the least of tl.dot) to LARGEST_COLUMNS."""
    columns: int = triton.next_power_of_2(width)
    return min(LARGEST_COLUMNS, max(16, columns))


def tile(rows: int, width: int, *, elements: int = 8192) -> tuple[int, int]:
    """Rows and columns of a row-wise kernel's tile: as much of the width as fits, at most `elements` elements."""
    columns = min(1024, triton.next_power_of_2(max(16, width)))
    return max(1, min(triton.next_power_of_2(max(1, rows)), elements // columns)), columns


def check_spec(spec: moecheck.ExpertSpec) -> None:
    """Raise Unsupported for what the activation's device code does not implement."""
    if not spec.gated or spec.weight_on_input:
        raise moecheck.Unsupported("implements gated experts that weigh their outputs")
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
