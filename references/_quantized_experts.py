"""Stacks of experts whose weights are quantised: each is dequantised exactly, and rounded where a kernel stores it."""

from __future__ import annotations

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.quantization import Quantization

from ._expert import ExpertArrays
from ._stores import decode, rounded
from .quantize_weights import QuantizedMatrix, dequantize_weights


class QuantizedExperts:
    """Matrices [E, N, K] float64 of codes and scales, each made when asked for."""

    def __init__(
        self,
        codes: ExpertArrays,
        scales: AnyArray,
        quantization: Quantization,
        *,
        zeros: AnyArray | None = None,
        global_scales: AnyArray | None = None,
    ) -> None:
        count, rows, columns = codes.shape
        self.shape = (count, rows, columns * 2 if quantization.packed else columns)
        self._codes, self._scales, self._quantization = codes, scales, quantization
        self._zeros, self._global = zeros, global_scales

    def __getitem__(self, expert: int, /) -> Float64:
        matrix = QuantizedMatrix(
            self._codes[expert],
            self._scales[expert],
            None if self._zeros is None else self._zeros[expert],
            None if self._global is None else np.float32(self._global[expert]),
        )
        return dequantize_weights(matrix, self._quantization, self.shape[2])


class StoredExperts:
    """The experts of a stack, rounded to a format as a kernel stores them after dequantising."""

    def __init__(self, stack: ExpertArrays, fmt: str) -> None:
        self.shape = stack.shape
        self._stack, self._format = stack, fmt

    def __getitem__(self, expert: int, /) -> Float64:
        return rounded(decode(self._stack[expert]), self._format)


def experts_of(
    w: ExpertArrays,
    quantization: Quantization | None,
    fmt: str = "fp32",
    *,
    scales: AnyArray | None = None,
    zeros: AnyArray | None = None,
    global_scales: AnyArray | None = None,
) -> ExpertArrays:
    """The matrices that a kernel multiplies by, `fmt` being its store of dequantised weights.

    w: codes with scales, or without them float64 numbers that were dequantised before; weights that are not quantised
    are used as they are. Raises ValueError for codes without scales.
    """
    if quantization is None:
        return w
    if scales is not None:
        w = QuantizedExperts(w, scales, quantization, zeros=zeros, global_scales=global_scales)
    elif getattr(w, "dtype", np.float64) != np.float64:
        raise ValueError(f"Weights of {quantization.words()} come without their scales.")
    return w if fmt == "fp32" else StoredExperts(w, fmt)
