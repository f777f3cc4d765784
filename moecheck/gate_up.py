"""Where the gate and the up of each intermediate unit stand among the rows of w13, or the columns of its product."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .spec import ExpertSpec

Rows = npt.NDArray[np.intp]
# Rows of gates ahead of as many rows of ups, where the two alternate.
BLOCKS = {"interleaved": 1, "interleaved_8": 8, "interleaved_16": 16}


def gate_up_rows(layout: str, width: int) -> tuple[Rows, Rows]:
    """Rows of the gates and of the ups of `width` intermediate units, [width] each. layout: a GateUpLayout.

    `halves`: gates, then ups. `up_first`: ups, then gates (TensorRT-LLM and FlashInfer call it w31). `interleaved`: g,
    u, g, u (GPT-OSS). `interleaved_8`, `interleaved_16`: so many gates, as many ups (Alpha-MoE; FlashInfer's NVFP4
    megakernel); the last block is as short as is left over.
    """
    unit = np.arange(width)
    if layout == "up_first":
        return width + unit, unit
    block = BLOCKS.get(layout, max(width, 1))
    start = unit - unit % block
    length = np.minimum(block, width - start)  # of the unit's own block
    return unit + start, unit + start + length


def rows_of_units(units: Rows, width: int, spec: ExpertSpec) -> Rows:
    """Rows of w13 that compute the given units out of `width`, in the spec's layout and in the layout of as many."""
    if not spec.gated:
        return units
    gates, ups = gate_up_rows(spec.gate_up_layout, width)
    own_gates, own_ups = gate_up_rows(spec.gate_up_layout, len(units))
    rows = np.empty(2 * len(units), np.intp)
    rows[own_gates], rows[own_ups] = gates[units], ups[units]
    return rows
