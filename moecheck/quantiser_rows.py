"""Hidden states on which quantisers differ that agree elsewhere: near ties of their codes, and rows next to nothing."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np

from . import draw
from .cases import Case
from .formats import Float64

LARGEST = np.float32(448.0)  # of e4m3
BINADES = 9  # of values below the largest of a row, all of which e4m3 keeps as normal numbers
TINY = (2.0**-12, 2.0**-24)  # of a row: between the least amaxes that kernels have


def quantiser_rows(case: Case) -> Float64:
    """[T, H]: two rows in four are of numbers between two codes of e4m3, the others are nearly zero.

    Whether a quotient is x / s or x times 1 / s, and s amax / 448 or amax times 1 / 448, changes its last bit at most,
    so that of numbers as they come one in a million gets another code. A number x that is a tie for one of these rules
    and none for another has another code at once. All numbers have 8 bits, as bf16 has. Each row has one such amax,
    in every group of 32 columns.
    """
    T, H = case.num_tokens, case.hidden_size
    table = draw.normal_table_float64(1.0, "bf16")
    x: Float64 = draw.look_up(draw.philox(case.key, "hidden_states"), table, (T, H))
    picks = np.abs(x * 2.0**20).astype(np.int64)
    ties = between_codes()
    for row in range(T):
        if row % 4 < 2:
            largest, values = ties[(row // 4 * 2 + row % 4) % len(ties)]
            sizes = values[picks[row] % len(values)]
            sizes[:: min(32, max(H, 1))] = largest
            x[row] = np.where(x[row] < 0, -sizes, sizes)
        else:
            x[row] *= TINY[row % 2]
    return x


@cache
def between_codes() -> tuple[tuple[float, Float64], ...]:
    """Amaxes of 8 bits from 1 to 2, each with the smaller numbers whose code depends on the rules of arithmetic."""
    significands = (np.arange(128, 256) / 128).astype(np.float32)
    found = []
    for largest in significands:
        below = (significands[:, None] * np.exp2(-np.arange(BINADES, dtype=np.float32))).ravel()
        below = below[below <= largest]
        scales = (largest / LARGEST, largest * (np.float32(1) / LARGEST))
        quotients = [q for s in scales for q in (below / s, below * (np.float32(1) / s))]
        codes = [np.minimum(q, LARGEST).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) for q in quotients]
        apart = np.any(np.stack(codes) != codes[0], axis=0)
        if apart.any():
            found.append((float(largest), below[apart].astype(np.float64)))
    return tuple(found)
