"""The check of floating-point outputs: is the deviation from the reference explained by rounding?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecheck import metrics
from moecheck.bounds import value_bound, z_limit
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.place import shares
from moecheck.formats import Float64
from moecheck.oracle import Values

Bool = npt.NDArray[np.bool_]
MOST_UNDEFINED = 0.05  # share of elements that may stay unjudged in a case that passes


def judge_values(
    out: Float64,
    expected: Values,
    *,
    tol: float,
    max_mismatch: float | None,
    exact: bool = False,
    row: str = "token",
    largest: float = np.inf,
) -> Judgement:
    """PASS when every element lies within what rounding explains, else FAIL, or PROVEN_WRONG where no rounding may.

    out: [rows, columns] float64, as the kernel returned it. exact: equality is required (an integer-exact case).
    largest: the largest finite number of the output's format; an honest value that rounding may carry beyond it may
    be an infinity of the right sign, as may one that overflows at a declared rounding point.
    The tolerance `tol` is reported as mismatch_ratio against the rounded reference. It never excuses an element that
    rounding does not explain. An element beyond it that rounding does explain fails nothing, since no correct kernel
    could do better, unless max_mismatch is given: then that ratio is a hard cap.
    Elements that the reference itself finds to be undefined are left to `numbers["undefined"]`; where they are too
    many to say anything, the verdict is INCONCLUSIVE.
    """
    defined, allowed = _defined(expected), _allowed(expected, exact=exact)
    error = metrics.abs_err(out, expected.true)
    beyond = defined & ~((error <= allowed) | _overflowed(out, expected, allowed, largest))
    numbers = _numbers(out, expected, error, defined, tol)
    numbers["unexplained_ratio"] = float(beyond.mean()) if out.size else 0.0
    if not exact:
        numbers["limit_max_z"] = z_limit(expected.sigma.size)
    if not beyond.any():
        if _is_undecided(defined):
            return _undecided(defined, numbers)
        return _explained(numbers, tol, max_mismatch)
    worst = _worst(out, error, allowed, beyond)
    proven = exact or not np.isfinite(out[beyond]).all()
    return Judgement(
        check="values",
        verdict=Verdict.PROVEN_WRONG if proven else Verdict.FAIL,
        message=_message(out, expected, allowed, beyond, worst, row),
        numbers=numbers,
        where={row: worst[0], "column": worst[1]},
    )


def is_vacuous(expected: Values, *, tol: float, exact: bool = False) -> bool:
    """Whether an all-zeros output would pass, at this tolerance or as rounding: such a case shows nothing."""
    size, judged = np.abs(expected.true), np.isfinite(expected.true)
    with np.errstate(invalid="ignore"):
        shown = judged & (size > 0.0) & ~(size <= tol + tol * size)
    if not shown.any():
        return True
    defined = _defined(expected)
    explained = size <= _allowed(expected, exact=exact)
    return bool((explained | ~defined).all()) and not _is_undecided(defined)


def _defined(expected: Values) -> Bool:
    return np.asarray(np.isfinite(expected.true) & ~np.isnan(expected.rounded))


def _is_undecided(defined: Bool) -> bool:
    return bool(np.count_nonzero(~defined) > MOST_UNDEFINED * defined.size)


def _allowed(expected: Values, *, exact: bool) -> Float64:
    return np.zeros_like(expected.sigma) if exact else value_bound(expected.sigma)


def _overflowed(out: Float64, expected: Values, allowed: Float64, largest: float) -> Bool:
    """Where an infinity is right: at a declared rounding point, or because the output's format ends there."""
    beyond_format = (np.abs(expected.true) + allowed > largest) & (np.sign(out) == np.sign(expected.true))
    return np.asarray(np.isinf(out) & ((out == expected.rounded) | beyond_format))


def _explained(numbers: dict[str, float], tol: float, cap: float | None) -> Judgement:
    ratio = numbers["mismatch_ratio"]
    verdict, note = Verdict.PASS, f"{ratio:.2%} of the elements exceed tol={tol:g}, by rounding alone." if ratio else ""
    if cap is not None and not ratio <= cap:
        verdict, note = (
            Verdict.FAIL,
            f"{ratio:.2%} of the elements exceed tol={tol:g}, --max-mismatch allows {cap:.2%}.",
        )
    return Judgement(check="values", verdict=verdict, message=note, numbers=numbers)


def _undecided(defined: Bool, numbers: dict[str, float]) -> Judgement:
    count = int(np.count_nonzero(~defined))
    message = f"The reference is undefined in {count} of {defined.size} elements; the others are right."
    return Judgement(check="values", verdict=Verdict.INCONCLUSIVE, message=message, numbers=numbers)


def _numbers(out: Float64, expected: Values, error: Float64, defined: Bool, tol: float) -> dict[str, float]:
    out, rounded = out[defined], expected.rounded[defined]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.where(error[defined] == 0, 0.0, error[defined] / expected.sigma[defined])
        rms_z = float(np.sqrt(np.mean(z**2))) if z.size else 0.0
    return {
        **metrics.differences(out, rounded, tol),
        "max_z": float(np.max(z, initial=0.0)),
        "rms_z": rms_z,
        "rms_ref": metrics.rms(expected.true),
        "undefined": float(np.count_nonzero(~defined)),
    }


def _worst(out: Float64, error: Float64, allowed: Float64, beyond: Bool) -> tuple[int, int]:
    """Coordinates of the first non-finite element, else of the one that exceeds its bound by the largest factor."""
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(beyond, error / allowed, -1.0)
    excess = np.where(beyond & ~np.isfinite(out), np.inf, excess)
    row, column = np.unravel_index(int(np.argmax(excess)), excess.shape)
    return int(row), int(column)


def _message(out: Float64, expected: Values, allowed: Float64, beyond: Bool, worst: tuple[int, int], row: str) -> str:
    bound = allowed[worst]
    explained = f"rounding explains ±{bound:.2g}" if bound > 0 else "this case is exact in every format"
    return (
        f"{row} {worst[0]}, column {worst[1]}: got {out[worst]:.6g}, expected {expected.true[worst]:.6g} "
        f"({explained}). "
        f"Wrong: {shares(beyond, row)}."
    )
