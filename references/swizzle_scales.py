"""Reference of the 128 x 4 layout in which tensor cores read block scales."""

from __future__ import annotations

import numpy as np

from moecheck.formats import AnyArray

ROWS, COLUMNS, INNER = 128, 4, 32


def swizzle_scales(scales: AnyArray) -> AnyArray:
    """Scales [N, G] in tiles of 128 x 4, padded with 0 to whole tiles: [ceil(N / 128) * 128, ceil(G / 4) * 4].

    Within a tile the scale of row r and column c lies at (r % 32) * 16 + (r // 32) * 4 + c; tiles follow row by row.
    Source: NVIDIA PTX ISA, tcgen05.mma block scaling, scale factor layout; CUTLASS Sm1xxBlockScaledConfig.
    """
    n, groups = scales.shape
    padded = np.zeros((-(-n // ROWS) * ROWS, -(-groups // COLUMNS) * COLUMNS), scales.dtype)
    padded[:n, :groups] = scales
    tiles = padded.reshape(len(padded) // ROWS, ROWS // INNER, INNER, padded.shape[1] // COLUMNS, COLUMNS)
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1, 4)).reshape(padded.shape)


def unswizzle_scales(swizzled: AnyArray, rows: int, groups: int) -> AnyArray:
    """The inverse of `swizzle_scales` for a matrix of `rows` rows and `groups` scales a row; padding is dropped."""
    shape = (len(swizzled) // ROWS, swizzled.shape[1] // COLUMNS, INNER, ROWS // INNER, COLUMNS)
    tiles = swizzled.reshape(shape).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(tiles.reshape(swizzled.shape)[:rows, :groups])
