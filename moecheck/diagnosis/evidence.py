"""How well a hypothesis explains an observed output: the sum of z^2 and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecheck.bounds import FLUSHED, z_limit
from moecheck.formats import Float64
from moecheck.mutants.call import Prediction

Bool = npt.NDArray[np.bool_]
LARGEST_Z = 1e6  # a larger one counts as this: a few wild elements must not hide the rest
RMS_EXPLAINED = 1.5  # honest kernels measure 0.7 to 1.25 under any contract that we know of
LEAST_GAIN = 400.0  # in the sum of z^2: 20 standard deviations, 3 where errors are shared by the columns of a row
FEW_ROWS = 8
SHARED = 6.0  # by how much errors that the columns of a row share widen a slope's error (measured: 2.6 to 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is to be explained.

    out: [rows, columns] float64. reference: the right output. rounded: it with the kernel's rounding points (the value
    itself where none are known). judged: elements that count; the others have no single right value.
    """

    out: Float64
    reference: Prediction
    rounded: Float64
    judged: Bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """cost: the sum of z^2, -2 log likelihood. unlike: elements of which only one side is finite.

    There is no term for the size of sigma: an undeclared contract's is too large by a factor that nobody knows, and
    such a term would prefer whatever has the smaller one.
    """

    cost: float
    rms_z: float
    max_z: float
    unlike: int
    elements: int

    @property
    def explains(self) -> bool:
        """Whether the output is as near to the prediction as a right kernel's output is to the right values."""
        return self.unlike == 0 and self.rms_z <= RMS_EXPLAINED and self.max_z <= z_limit(self.elements)


def z_of(out: Float64, prediction: Prediction) -> Float64:
    """|out - value| / sigma, at most LARGEST_Z.

    0 where both are equal or the prediction is NaN and the output not finite; LARGEST_Z where only one is finite, or
    where sigma is 0 and they differ.
    """
    value, sigma = prediction
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = np.abs(out - value)
        z = np.where(sigma > 0, error / np.maximum(sigma, FLUSHED), np.where(error <= FLUSHED, 0.0, np.inf))
    z = np.where((out == value) | (np.isnan(value) & ~np.isfinite(out)), 0.0, z)
    return np.nan_to_num(np.minimum(z, LARGEST_Z), nan=LARGEST_Z)


def score(evidence: Evidence, prediction: Prediction) -> Score:
    """The score of one hypothesis on all judged elements."""
    z = z_of(evidence.out, prediction)[evidence.judged]
    out, value = evidence.out[evidence.judged], prediction.value[evidence.judged]
    unlike = np.isfinite(out) != np.isfinite(value)
    finite = z[~unlike]
    return Score(
        cost=float(np.square(z).sum()),
        rms_z=float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0,
        max_z=float(np.max(finite, initial=0.0)),
        unlike=int(unlike.sum()),
        elements=int(z.size),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted factor and its standard error."""

    factor: float
    error: float


def fit_factor(target: Float64, basis: Float64, sigma: Float64, judged: Bool, *, sized: bool = True) -> Fit | None:
    """The c of target = c basis, by weighted least squares over the judged, finite elements; None without any signal.

    sized: sigma has the size of an error; otherwise it only weighs.

    The standard error is that of sums over rows (White 1980, clustered by row): the errors of one row's columns are
    not independent, since they share the errors of h. With few rows it is never below SHARED times what independent
    errors of size sigma would give, for residuals of the fit add up to 0 in a single row.
    """
    usable = judged & np.isfinite(target) & np.isfinite(basis) & (sigma > 0) & np.isfinite(sigma)
    weight = np.where(usable, 1.0 / np.square(np.where(usable, sigma, 1.0)), 0.0)
    x, y = np.where(usable, basis, 0.0), np.where(usable, target, 0.0)
    total = float((weight * x * x).sum())
    if not total > 0.0:
        return None
    factor = float((weight * x * y).sum()) / total
    rows = (weight * x * (y - factor * x)).sum(axis=1)
    least = (SHARED if np.count_nonzero((weight * x * x).any(axis=1)) < FEW_ROWS else 1.0) / np.sqrt(total)
    return Fit(factor=factor, error=max(float(np.sqrt(np.square(rows).sum())) / total, least if sized else 0.0))
