"""Reference of `shuffle_rows`: rows copied by an index map."""

from __future__ import annotations

import numpy as np

from moecheck.formats import AnyArray, Float64, to_float64


def shuffle_rows(*, x: AnyArray, row_map: AnyArray) -> Float64:
    """out[i] = x[row_map[i]], bit for bit, NaN included.

    x: [R0, W] storage dtype. row_map: [R] int in 0 .. R0 - 1; rows may repeat or be left out. Returns [R, W] float64.
    Unspecified region: rows whose index is -1; the reference leaves NaN.
    Source: vLLM shuffle_rows.
    """
    out = np.full((len(row_map), x.shape[1]), np.nan)
    for i, row in enumerate(row_map):
        if row >= 0:
            out[i] = to_float64(x[row])
    return out
