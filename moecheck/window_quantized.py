"""Quantised weights of large layers: codes and scales drawn directly, and the float64 numbers that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np

from . import draw
from .cases import Case
from .elements import ELEMENTS
from .errors import CaseError
from .formats import FORMATS, AnyArray, Float64, store, to_float64
from .quantization import Quantization
from .quantized_inputs import CODE_DTYPES, SPANS
from .window_weights import WindowStack, used_again

REACH = 4.0  # the largest code is so many standard deviations of the codes; quantiles go to 3.7


@dataclass(frozen=True, kw_only=True)
class DequantisedStack:
    """A stack [count, rows, columns] of float64 matrices, each made when asked for. scales: one for every block."""

    codes: WindowStack
    scales: WindowStack
    quantization: Quantization

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.codes.count, self.codes.rows, self.codes.columns

    def __getitem__(self, expert: int, /) -> Float64:
        scales = self.scales.float64(expert)
        rows, columns = self.codes.rows, self.codes.columns
        height, width = _block(self.quantization, rows, columns)
        matrix = used_again((rows, columns))
        for part, numbers in self.codes.parts(expert):
            matrix[part] = numbers
            first, last = part.start // height, (part.stop - 1) // height
            if first == last:
                matrix[part] *= np.repeat(scales[first], width)[:columns]
            else:
                of_rows = scales[np.arange(part.start, part.stop) // height]
                matrix[part] *= np.repeat(of_rows, width, axis=1)[:, :columns]
        return matrix


def quantized_stacks(
    case: Case, name: str, shape: tuple[int, int, int], *, scale: float
) -> tuple[WindowStack, WindowStack]:
    """Codes and scales of `w13` or `w2`: weights of standard deviation `scale`, times the signature of a block's scale.

    shape: [count, rows, columns] of the weights. Raises CaseError for schemes with zero points, two levels of scales or
    swizzled ones, which are not drawn directly.
    """
    quantization = case.spec.experts.quantization
    assert quantization is not None
    if quantization.zero_points or quantization.swizzled or quantization.scale == "e4m3":
        raise CaseError(f"{quantization.words()} are not drawn directly; a sampled case needs another scheme.")
    count, rows, columns = shape
    elements = import_module("moecheck.references.quantize_elements")
    unit = ELEMENTS[quantization.weights].max_value / REACH
    codes = elements.encode(draw.normal_quantiles() * unit, quantization.weights)
    numbers = elements.decode(codes, quantization.weights)
    dtype = CODE_DTYPES.get(quantization.weights)
    height, width = _block(quantization, rows, columns)
    scales, of_scales = _scale_table(quantization, scale / unit, case.dtype, wide=width < columns, high=height < rows)
    return (
        WindowStack(
            key=(case.key, name),
            table=codes if dtype is None else codes.view(dtype),
            numbers=numbers,
            count=count,
            rows=rows,
            columns=columns,
            packed=quantization.packed,
        ),
        WindowStack(
            key=(case.key, f"{name}_scale"),
            table=scales,
            numbers=of_scales,
            count=count,
            rows=-(-rows // height),
            columns=-(-columns // width),
        ),
    )


def _scale_table(
    quantization: Quantization, scale: float, dtype: str, *, wide: bool, high: bool
) -> tuple[AnyArray, Float64]:
    """[4096] scales about `scale`, log-uniform over the span of their kind, as stored, and as float64 numbers."""
    span = SPANS["blocks" if wide else "rows" if high else "matrix"]
    exponents = span * (2.0 * (np.arange(draw.TABLE_SIZE) + 0.5) / draw.TABLE_SIZE - 1.0)
    mean_square = np.sinh(2.0 * span * np.log(2.0)) / (2.0 * span * np.log(2.0))
    # On a grid that is coarser than any libm's error.
    factors = np.rint(np.exp2(exponents) / np.sqrt(mean_square) * 4096.0) / 4096.0
    if quantization.scale in ("power_of_two", "e8m0"):
        powers = np.rint(np.log2(scale * factors)).astype(np.int64)
        numbers = np.exp2(powers.astype(np.float64))
        stored = (powers + 127).astype(np.uint8) if quantization.scale == "e8m0" else numbers.astype(np.float32)
        return stored, numbers
    if quantization.scale == "input":
        table = store((scale * factors).astype(np.float32).astype(np.float64), dtype)
        return table.astype(FORMATS[dtype].storage), to_float64(table)
    single = (scale * factors).astype(np.float32)
    return single, to_float64(single)


def _block(quantization: Quantization, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    return min(quantization.rows or rows, rows), min(quantization.columns or columns, columns)
