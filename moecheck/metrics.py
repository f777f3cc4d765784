"""Metrics whose names are their formulas; total: NaN and infinities give a number or are counted as mismatches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .formats import Float64

Bool = npt.NDArray[np.bool_]


def differences(out: Float64, ref: Float64, tol: float) -> dict[str, float]:
    """The three metrics below by their names, the difference computed once."""
    error = abs_err(out, ref)
    largest, count = float(np.max(error, initial=0.0)), np.count_nonzero(_mismatched(error, out, ref, tol))
    return {
        "max_diff": largest,
        "max_rel_diff": _relative(largest, ref),
        "mismatch_ratio": float(count / out.size) if out.size else 0.0,
    }


def max_diff(out: Float64, ref: Float64) -> float:
    """Max |out - ref|; infinite when an element of `out` is NaN or a wrong infinity, 0 for empty arrays."""
    return float(np.max(abs_err(out, ref), initial=0.0))


def max_rel_diff(out: Float64, ref: Float64) -> float:
    """Max |out - ref| / rms(ref); 0 when both are zero, infinite when only rms(ref) is."""
    return _relative(max_diff(out, ref), ref)


def mismatch_ratio(out: Float64, ref: Float64, tol: float) -> float:
    """Share of elements with |out - ref| > tol + tol * |ref|; NaN counts as a mismatch, an empty array has 0."""
    return float(mismatches(out, ref, tol).mean()) if out.size else 0.0


def mismatches(out: Float64, ref: Float64, tol: float) -> Bool:
    """Which elements do not satisfy |out - ref| <= tol + tol * |ref|."""
    return _mismatched(abs_err(out, ref), out, ref, tol)


def abs_err(out: Float64, ref: Float64) -> Float64:
    """|out - ref| per element: 0 for equal infinities and for two NaN, infinite for one NaN or other infinities."""
    with np.errstate(invalid="ignore"):
        error = np.abs(out - ref)
    if np.isfinite(error).all():  # the usual case: nothing to decide
        return error
    error = np.where((out == ref) | (np.isnan(out) & np.isnan(ref)), 0.0, error)
    return np.where(np.isnan(error), np.inf, error)


def _mismatched(error: Float64, out: Float64, ref: Float64, tol: float) -> Bool:
    with np.errstate(invalid="ignore"):
        within = np.isfinite(error) & (error <= tol + tol * np.abs(ref))  # an infinite ref or tol excuses nothing
    return np.asarray(~(within | (out == ref)))


def _relative(largest: float, ref: Float64) -> float:
    size = rms(ref)
    if size == 0.0:
        return 0.0 if largest == 0.0 else float("inf")
    return largest / size


def rms(values: Float64) -> float:
    """Root mean square of the finite elements; 0 when there are none."""
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
