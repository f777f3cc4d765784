"""Where the error of one output is, small enough to draw: coarsened maps, a histogram and the worst elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moecheck.errors import HarnessError
from moecheck.formats import AnyArray, Float64, to_float64
from moecheck.report.strict_json import number

MAX_CELLS = (96, 128)
WORST_ELEMENTS = 12
# Bins of |out - ref| / allowed: four per factor of ten from 1e-4 to 1e4; 1 is an edge.
EDGES = 10.0 ** (np.arange(-16, 17) / 4)
# Bins of (out - ref) / sigma: quarters of a standard deviation from -12 to 12, beyond which nothing is explained.
Z_EDGES = np.arange(-48, 49) / 4
KEPT_DIGITS = 4  # of the map in a file: it is drawn in colours


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstElement:
    """One element: its place, the kernel's value, the reference's, |got - expected| and the bound on it."""

    row: int
    column: int
    got: float
    expected: float
    error: float
    allowed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPicture:
    """The error of one kernel on one case, as T rows and H columns, coarsened to at most MAX_CELLS cells.

    shape: (T, H) before coarsening. axes: names of rows and columns.
    excess: [t, h] float64, the largest |out - ref| / allowed of each cell; above 1 is wrong, infinite where only one of
    the two is finite.
    histogram: [len(EDGES) + 1] int64, elements by |out - ref| / allowed: up to EDGES[0], between the edges, above all.
    worst: the elements of largest excess, worst first. wrong: number of elements with excess above 1.
    z: [len(Z_EDGES) + 1] int64, elements by (out - ref) / sigma, those that are not finite in the last; None where
    sigma is not known.
    """

    kernel: str
    case: str
    shape: tuple[int, int]
    axes: tuple[str, str]
    excess: Float64
    histogram: npt.NDArray[np.int64]
    worst: tuple[WorstElement, ...]
    wrong: int
    z: npt.NDArray[np.int64] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; the map is kept to KEPT_DIGITS digits."""
        excess = [[float(f"{value:.{KEPT_DIGITS}g}") for value in row] for row in self.excess.tolist()]
        return {**asdict(self), "excess": excess}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ErrorPicture:
        """The inverse of `to_json`, also after strict JSON; raises KeyError, TypeError or ValueError for other data."""
        excess = np.array([[number(value) for value in row] for row in data["excess"]], dtype=np.float64)
        rows, columns = data["shape"]
        if excess.ndim != 2 or not 1 <= excess.shape[0] <= MAX_CELLS[0] or not 1 <= excess.shape[1] <= MAX_CELLS[1]:
            raise ValueError(f"a map of shape {excess.shape}")
        z = data.get("z")
        return cls(
            kernel=str(data["kernel"]),
            case=str(data["case"]),
            shape=(int(rows), int(columns)),
            axes=(str(data["axes"][0]), str(data["axes"][1])),
            excess=excess,
            histogram=_counts(data["histogram"], len(EDGES) + 1),
            worst=tuple(_element(entry) for entry in data["worst"]),
            wrong=int(data["wrong"]),
            z=None if z is None else _counts(z, len(Z_EDGES) + 1),
        )


def picture_of(
    out: AnyArray,
    ref: AnyArray,
    allowed: AnyArray | float,
    *,
    kernel: str,
    case: str,
    axes: tuple[str, str] = ("token", "column"),
    sigma: AnyArray | None = None,
) -> ErrorPicture:
    """The picture of |out - ref| against `allowed`.

    out, ref: arrays of one shape, in any format; the first axis is the rows, the others are flattened into columns;
    a single axis is one column. allowed: the bound on |out - ref|, broadcast to that shape. sigma: the standard
    deviation that rounding gives out - ref, of the same shape, for the histogram of z.
    """
    if out.shape != ref.shape:
        raise HarnessError(f"picture_of needs arrays of one shape, not {out.shape} and {ref.shape}.")
    got, expected = _matrix(to_float64(out)), _matrix(to_float64(ref))
    bound = _matrix(np.broadcast_to(np.asarray(allowed, dtype=np.float64), ref.shape))
    error = _error(got, expected)
    excess = _excess(error, bound)
    worst = [np.unravel_index(flat, excess.shape) for flat in _largest_first(excess.ravel(), WORST_ELEMENTS)]
    return ErrorPicture(
        kernel=kernel,
        case=case,
        shape=(got.shape[0], got.shape[1]),
        axes=axes,
        excess=coarsen(excess, *MAX_CELLS),
        histogram=np.bincount(np.searchsorted(EDGES, excess.ravel(), side="left"), minlength=len(EDGES) + 1),
        worst=tuple(
            WorstElement(
                row=int(at[0]),
                column=int(at[1]),
                got=float(got[at]),
                expected=float(expected[at]),
                error=float(error[at]),
                allowed=float(bound[at]),
            )
            for at in worst
            if excess[at] > 0
        ),
        wrong=int(np.count_nonzero(~(excess <= 1))),
        z=None if sigma is None else _z_counts(got - expected, error, np.asarray(sigma, dtype=np.float64)),
    )


def coarsen(values: Float64, rows: int, columns: int) -> Float64:
    """The largest element of each cell, with at most `rows` x `columns` cells. values: [t, h] float64."""
    row_cuts, column_cuts = _cuts(values.shape[0], rows)[:-1], _cuts(values.shape[1], columns)[:-1]
    by_rows = np.maximum.reduceat(values, row_cuts, axis=0)
    return np.asarray(np.maximum.reduceat(by_rows, column_cuts, axis=1), dtype=np.float64)


def _matrix(values: Float64) -> Float64:
    return values.reshape(values.shape[0] if values.ndim else 1, -1) if values.size else np.zeros((1, 1))


def _error(got: Float64, expected: Float64) -> Float64:
    """|got - expected|; 0 where both are NaN or the same infinity, +Inf where only one of them is finite."""
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got - expected)
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))


def _excess(error: Float64, bound: Float64) -> Float64:
    """Error / bound; 0 for no error, +Inf for an error where none is allowed."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        excess = error / bound
    return np.where(error == 0, 0.0, np.where(np.isnan(excess), np.inf, excess))


def _largest_first(values: Float64, number: int) -> npt.NDArray[np.intp]:
    """Indices of the `number` largest of values [n] float64, the largest first; equal ones by index."""
    number = min(number, values.size)
    top = np.sort(np.argpartition(values, values.size - number)[values.size - number :])
    return top[np.argsort(-values[top], kind="stable")]


def _z_counts(difference: Float64, error: Float64, sigma: Float64) -> npt.NDArray[np.int64]:
    """Elements by difference / sigma in the bins of Z_EDGES; no error is 0, what is not finite lies in the last."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.where(error == 0, 0.0, difference / _matrix(sigma))
    z = np.where(np.isnan(z), np.inf, z)
    return np.bincount(np.searchsorted(Z_EDGES, z.ravel(), side="right"), minlength=len(Z_EDGES) + 1)


def _counts(values: Any, length: int) -> npt.NDArray[np.int64]:
    counts = np.array([int(value) for value in values], dtype=np.int64)
    if counts.shape != (length,) or (counts < 0).any():
        raise ValueError(f"{len(counts)} counts where {length} are expected")
    return counts


def _element(data: Mapping[str, Any]) -> WorstElement:
    values = {name: number(data[name]) for name in ("got", "expected", "error", "allowed")}
    return WorstElement(row=int(data["row"]), column=int(data["column"]), **values)


def _cuts(size: int, most: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, size, min(size, most) + 1).astype(np.int64)
