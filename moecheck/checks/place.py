"""Puts into words which elements of an output are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
SHOWN = 4


def shares(wrong: Bool, row: str) -> str:
    """`3.1 % of the elements, all in token 17`: the share of wrong elements and the rows or columns that hold them."""
    rows, columns = np.flatnonzero(wrong.any(axis=1)), np.flatnonzero(wrong.any(axis=0))
    count = int(wrong.sum())
    amount = "1 element" if count == 1 else f"{count} of {wrong.size} elements ({wrong.mean():.2%})"
    if count == 1:
        return amount
    if len(rows) <= len(wrong) // 2:
        return f"{amount}, all in {names(row, rows)}"
    if len(columns) <= wrong.shape[1] // 2:
        return f"{amount}, all in {names('column', columns)}"
    return f"{amount}, in {len(rows)} of {len(wrong)} {row}s"


def names(noun: str, indices: npt.NDArray[np.integer[Any]]) -> str:
    """`tokens 3 to 7`: a few indices by name."""
    if len(indices) == 1:
        return f"{noun} {indices[0]}"
    if len(indices) > 2 and indices[-1] - indices[0] == len(indices) - 1:
        return f"{noun}s {indices[0]} to {indices[-1]}"
    listed = ", ".join(map(str, indices[:SHOWN]))
    return f"{noun}s {listed}" + (f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else "")
