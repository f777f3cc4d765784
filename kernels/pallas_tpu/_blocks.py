"""Block sizes of the fused kernel: one explicit record, its validation, and the automatic choice."""

from __future__ import annotations

from dataclasses import dataclass

from moecheck.errors import UsageError

LANES = 128  # of a TPU register: the last axis of a block is a multiple of it
SUBLANES = 8
INTERPRETED_LANES = 16  # so that small cases have several blocks too, as large ones have on a TPU
VMEM_BYTES = 48 << 20  # what the buffers may take of a core's vector memory
LARGEST = {"rows": 128, "hidden": 2048, "intermediate": 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How the work is cut.

    tokens: tokens that are routed, and added up, at a time. rows: rows of one expert that are computed together.
    intermediate: columns of gate and up, and rows of w2, in one weight tile. hidden_in: rows of w13 in one tile.
    hidden_out: columns of w2 in one tile.
    """

    tokens: int
    rows: int
    intermediate: int
    hidden_in: int
    hidden_out: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"Blocks.{name}={value!r} must be an integer of at least 1.")
        for name in ("tokens", "rows"):
            if getattr(self, name) % SUBLANES:
                raise UsageError(f"Blocks.{name}={getattr(self, name)} must be a multiple of {SUBLANES}.")

    def check(self, *, lanes: int) -> None:
        """Raise UsageError where a tile's last axis is no multiple of the lanes."""
        for name in ("intermediate", "hidden_in", "hidden_out"):
            if getattr(self, name) % lanes:
                raise UsageError(f"Blocks.{name}={getattr(self, name)} must be a multiple of {lanes}.")

    def vmem_bytes(self, *, hidden: int, top_k: int, itemsize: int) -> int:
        """Of the double-buffered tiles and the fp32 accumulators; hidden: its padded size."""
        tiles = 2 * self.hidden_in * self.intermediate + self.intermediate * self.hidden_out
        rows = self.rows * hidden
        summed = self.tokens * top_k * hidden
        accumulators = self.rows * (hidden + 2 * self.intermediate) + self.tokens * hidden
        return 2 * itemsize * (tiles + 2 * rows + summed + self.tokens * hidden) + 4 * accumulators


def automatic(*, tokens: int, hidden: int, intermediate: int, top_k: int, itemsize: int, lanes: int) -> Blocks:
    """Two tiles of each axis or more, so that copies overlap with products, and as large as vector memory has room for.

    tokens: on the rank with most of them. lanes: LANES, or INTERPRETED_LANES in an interpreter.
    """
    rows = min(LARGEST["rows"], _up(max(tokens, 1), SUBLANES))
    rows = min(rows, 2 * SUBLANES) if lanes == INTERPRETED_LANES else rows
    width = min(LARGEST["hidden"], _up(-(-hidden // 2), lanes))
    inner = min(LARGEST["intermediate"], _up(-(-intermediate // 2), lanes))
    padded = _up(hidden, width)
    while True:
        blocks = Blocks(tokens=SUBLANES, rows=rows, intermediate=inner, hidden_in=width, hidden_out=width)
        if blocks.vmem_bytes(hidden=padded, top_k=top_k, itemsize=itemsize) <= VMEM_BYTES:
            return blocks
        if inner > lanes:
            inner = _up(inner // 2, lanes)
        elif rows > SUBLANES:
            rows = _up(rows // 2, SUBLANES)
        elif width > lanes:
            width = _up(width // 2, lanes)
            padded = _up(hidden, width)
        else:
            raise UsageError(f"hidden_size={hidden} with top_k={top_k} leaves no block that fits into vector memory.")


def padded_size(size: int, block: int) -> int:
    """The size as a multiple of the block."""
    return _up(size, block)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
