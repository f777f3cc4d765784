"""Reproducible random arrays: raw Philox bits through quantile tables.

`numpy.random.Generator` may change its normal variates between releases and needs seconds for one expert of a large
model. Philox' raw 64-bit words never change, and a table look-up gives a kernel's stored bits and the reference's
float64 values alike.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from .formats import AnyArray, Float64, store, to_float64

TABLE_BITS = 12
TABLE_SIZE = 1 << TABLE_BITS
_GRID = 2.0**-20  # coarser than any libm's disagreement on the quantile function
_CHUNK = 1 << 16  # elements per look-up: index and result stay in the cache


def philox(*key: object) -> np.random.Generator:
    """A Philox-4x64 generator keyed by the text of `key` (a case and a tensor name), for `raw` words only."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")))


def raw(bits: np.random.Generator, count: int) -> npt.NDArray[np.uint64]:
    """The next `count` raw 64-bit words (a full-range draw hands them out unchanged, and faster than `random_raw`)."""
    return bits.integers(0, 2**64 - 1, size=count, dtype=np.uint64, endpoint=True)


@lru_cache(maxsize=1)
def normal_quantiles() -> Float64:
    """[4096] float64: standard normal quantiles at the midpoints (i + 1/2) / 4096, on a grid of 2^-20."""
    inverse = NormalDist().inv_cdf
    exact = np.array([inverse((i + 0.5) / TABLE_SIZE) for i in range(TABLE_SIZE)])
    return np.rint(exact / _GRID) * _GRID


@lru_cache(maxsize=256)
def normal_table(scale: float, dtype: str) -> AnyArray:
    """[4096] of format `dtype`: the normal quantiles times `scale`, each rounded once."""
    return store(normal_quantiles() * scale, dtype)


@lru_cache(maxsize=256)
def normal_table_float64(scale: float, dtype: str) -> Float64:
    """The float64 values of `normal_table(scale, dtype)`, exactly."""
    return to_float64(normal_table(scale, dtype))


def look_up(bits: np.random.Generator, table: AnyArray, shape: tuple[int, ...]) -> AnyArray:
    """Array of `shape` and the table's dtype: each element is the table's entry at the next 12 random bits."""
    if table.dtype.kind == "V":  # not one of NumPy's own formats, which it takes several times as fast
        return look_up(bits, table.view(f"u{table.itemsize}"), shape).view(table.dtype)
    size = int(np.prod(shape, dtype=np.int64))
    out = np.empty(size, dtype=table.dtype)
    for start in range(0, size, _CHUNK):
        stop = min(start + _CHUNK, size)
        np.take(table, _words(bits, stop - start) >> (16 - TABLE_BITS), out=out[start:stop], mode="clip")
    return out.reshape(shape)


def normals(key: tuple[object, ...], shape: tuple[int, ...], *, scale: float, dtype: str) -> AnyArray:
    """Normal variates of standard deviation `scale`, stored in format `dtype`."""
    return look_up(philox(*key), normal_table(scale, dtype), shape)


def integers(key: tuple[object, ...], shape: tuple[int, ...], *, below: int) -> npt.NDArray[np.int64]:
    """int64 uniform on 0 .. below - 1 (below <= 2^32; the bias of the modulus is under 2^-31)."""
    size = int(np.prod(shape, dtype=np.int64))
    return (raw(philox(*key), size) % np.uint64(below)).astype(np.int64).reshape(shape)


def uniforms(key: tuple[object, ...], shape: tuple[int, ...]) -> Float64:
    """float64 uniform on the midpoints of [0, 1) in steps of 2^-32, never 0."""
    return (integers(key, shape, below=1 << 32).astype(np.float64) + 0.5) * 2.0**-32


def orders(key: tuple[object, ...], rows: int, width: int) -> npt.NDArray[np.int64]:
    """[rows, width] int64: in each row a random order of 0 .. width - 1."""
    return np.argsort(integers(key, (rows, width), below=1 << 32), axis=1, kind="stable")


def _words(bits: np.random.Generator, count: int) -> npt.NDArray[np.intp]:
    words = raw(bits, (count + 3) // 4)
    return words.astype("<u8", copy=False).view("<u2")[:count].astype(np.intp)
