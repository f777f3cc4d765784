"""Rows in groups that each meet a matrix of their own, and the products that estimates need of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecheck.formats import Float64

from ._parallel import each

Float32 = npt.NDArray[np.float32]
SMALLEST = 2.0**-126  # normal fp32 number
COLUMNS = 256  # rows of W squared at a time: bounds the extra memory
SQUARES_FIT = (1e-12, 1e8)  # a matrix whose largest square lies between has squares and products that fp32 holds
LARGEST_ROW = 70  # binary exponent of what is multiplied with such squares


class Group(NamedTuple):
    """Consecutive rows, and the float64 matrix W, [N, K], that they are multiplied with; it is made when asked for."""

    rows: slice
    matrix: Callable[[], Float64]


def whole(x: Float64, w: Float64) -> list[Group]:
    """All rows of x, which meet one matrix."""
    return [Group(slice(0, len(x)), lambda: w)]


class Products(NamedTuple):
    """What `products` returns, float64, the rows in their order.

    values: [Q, n, N]. squares: [S, n, N]. sizes: [A, n, N]. norms: [n, N], sum_k W_ik^2 of each row's own matrix.
    """

    values: Float64
    squares: Float64
    sizes: Float64
    norms: Float64


def products(
    groups: Sequence[Group],
    values: Sequence[Float64],
    *,
    squared: Sequence[Float64] = (),
    sized: Sequence[Float64] = (),
    norms: bool = False,
) -> Products:
    """The products with W^T of `values`, with (W^2)^T of `squared`, with |W|^T of `sized`; each W is asked for once.

    All [n, K] float64, n being all groups' rows; squared, sized: not negative, their products to the precision of fp32.
    norms: whether these are wanted, which are empty else.
    """
    x, of_squares, of_sizes = np.stack(values), _scaled(squared), _scaled(sized)

    def of_group(group: Group) -> Products:
        rows, w = group.rows, group.matrix()
        y = x[:, rows] @ w.T  # one product for each, so that a value never depends on what else is asked
        squares, sizes = _low_times(of_squares, of_sizes, rows, w)
        return Products(y, squares, sizes, np.vecdot(w, w) if norms else np.zeros(0))

    ys, square_products, size_products, lengths = map(list, zip(*each(of_group, groups), strict=True))
    counts = [y.shape[1] for y in ys]
    return Products(_joined(ys), _joined(square_products), _joined(size_products), np.repeat(lengths, counts, axis=0))


def _joined(parts: list[Float64]) -> Float64:
    """Groups' products [.., n, N] below each other."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)


class _Scaled(NamedTuple):
    """Rows [S, n, K] that are not negative, and 2^exponent times them in fp32, None where that does not hold them."""

    rows: Float64
    low: Float32 | None
    exponent: int

    def times(self, rows: slice, w: Float64) -> Float64:
        """The product of some rows with W^T in float64, [S, n, N]."""
        return self.rows[:, rows] @ w.T if len(self.rows) else self.rows

    def columns(self, rows: slice) -> Float32:
        """Some rows in fp32, [K, S * n]."""
        assert self.low is not None
        part = self.low[:, rows]
        return part.reshape(part.shape[0] * part.shape[1], part.shape[2]).T

    def unscaled(self, product: Float32) -> Float64:
        """The product of a matrix with `columns`, [N, S * n], as [S, n, N]."""
        wide = product.T.astype(np.float64, order="C")
        wide *= 2.0**-self.exponent
        return wide.reshape(len(self.rows), -1, len(product)) if len(self.rows) else self.rows


def _scaled(parts: Sequence[Float64]) -> _Scaled:
    if not parts:
        return _Scaled(np.zeros((0, 0, 0)), np.zeros((0, 0, 0), np.float32), 0)
    rows = np.stack(parts)
    largest = float(rows.max(initial=0.0))
    if largest < math.inf:
        exponent = min(LARGEST_ROW - math.frexp(largest)[1], 1000)
        low = (rows * 2.0**exponent).astype(np.float32)
        # A tiny term may be all that one output consists of.
        if np.count_nonzero(low >= SMALLEST) == np.count_nonzero(rows):
            return _Scaled(rows, low, exponent)
    return _Scaled(rows, None, 0)


def _low_times(squared: _Scaled, sized: _Scaled, rows: slice, w: Float64) -> tuple[Float64, Float64]:
    """The products of some rows with (W^2)^T and with |W|^T, [S, n, N] and [A, n, N].

    Computed in fp32, which is enough for a variance and twice as fast, scaled so that nothing that matters leaves its
    range; in float64 where something would.
    """
    if len(squared.rows) + len(sized.rows) == 0:
        return squared.rows, sized.rows
    found = None
    if squared.low is not None and sized.low is not None:
        found = _in_fp32(w, squared.columns(rows), sized.columns(rows))
    if found is None:
        return squared.times(rows, np.square(w)), sized.times(rows, np.abs(w))
    return squared.unscaled(found[0]), sized.unscaled(found[1])


def _in_fp32(w: Float64, squared: Float32, sized: Float32) -> tuple[Float32, Float32] | None:
    """The products of W^2 and of |W| with columns, or None where W^2 does not fit. BLAS does them faster than x W^T."""
    of_squares = np.empty((len(w), squared.shape[1]), np.float32)
    of_sizes = np.empty((len(w), sized.shape[1]), np.float32)
    for start in range(0, len(w), COLUMNS):
        part = w[start : start + COLUMNS].astype(np.float32)
        if sized.shape[1]:
            np.matmul(np.abs(part, out=part), sized, out=of_sizes[start : start + COLUMNS])
        np.square(part, out=part)
        largest = float(part.max(initial=0.0))
        if not (SQUARES_FIT[0] < largest < SQUARES_FIT[1] or largest == 0.0):
            return None
        np.matmul(part, squared, out=of_squares[start : start + COLUMNS])
    return of_squares, of_sizes
