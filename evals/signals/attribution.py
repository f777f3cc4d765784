"""Signal 1: on captured inputs of a MoE layer, y_candidate ~ alpha * routed_ref + beta * shared_ref.

A kernel that computes the layer rightly has alpha = beta = 1 up to rounding and nothing left over, whatever the task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecheck.errors import HarnessError
from moecheck.evals.backends.records import LayerCapture, ModelFacts, Precision

from .factors import name_weights
from .limits import LIMITS, TIE_GAP, Limits
from .signal import Outcome, Signal, absent

NAME = "component attribution"
ERRORS = 4.0  # standard errors of the fit that a factor may be off: elements of a row are not quite independent
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFit:
    """One layer under one plan of calls (`whole`, or rows per call).

    alpha, beta: the fit; beta is None without shared experts. alpha_error, beta_error: its standard errors, which are
    not small where few tokens are fitted or one component is much smaller than the other. residual: |y - fit| /
    |y_ref| over the tokens used. worst_row: largest |y_t - fit_t| / (|routed_t| + |shared_t|), at token `row`;
    bad_rows: tokens above `row_limit`. used: tokens of the fit. left_out: tokens whose experts differ, or that are ties
    where ids are hidden. finite: no NaN or infinity in y. ids_known: whether the candidate's choice was seen.
    """

    layer: int
    plan: str
    alpha: float
    beta: float | None
    alpha_error: float
    beta_error: float
    residual: float
    worst_row: float
    row: int
    bad_rows: tuple[int, ...]
    used: int
    left_out: int
    finite: bool
    ids_known: bool


def fit_layer(reference: LayerCapture, candidate: LayerCapture, *, plan: str, row_limit: float) -> LayerFit:
    """The fit of one replay; both captures hold the same T tokens.

    Raises HarnessError where the reference hides its summands.
    """
    if reference.routed is None or reference.hidden.shape != candidate.output.shape:
        raise HarnessError(f"layer {reference.layer}: attribution needs the reference's summands of the same tokens.")
    y = candidate.output.astype(np.float64)
    parts = [reference.routed.astype(np.float64)]
    parts += [reference.shared.astype(np.float64)] if reference.shared is not None else []
    use, known = _comparable(reference, candidate)
    finite = bool(np.isfinite(y).all())
    if not finite or not use.any():
        return LayerFit(
            layer=reference.layer,
            plan=plan,
            alpha=math.nan,
            beta=math.nan if len(parts) > 1 else None,
            alpha_error=math.nan,
            beta_error=math.nan,
            residual=math.nan,
            worst_row=math.nan,
            row=int(np.argmin(np.isfinite(y).all(axis=1))),
            bad_rows=tuple(np.flatnonzero(~np.isfinite(y).all(axis=1)).tolist()),
            used=int(use.sum()),
            left_out=int((~use).sum()),
            finite=finite,
            ids_known=known,
        )
    weights, errors = _least_squares([part[use] for part in parts], y[use])
    rest = y - sum(weight * part for weight, part in zip(weights, parts, strict=True))
    size = sum(np.linalg.norm(part, axis=1) for part in parts)
    rows = np.where(use, np.linalg.norm(rest, axis=1) / np.maximum(size, np.finfo(np.float32).tiny), 0.0)
    whole = float(np.linalg.norm(sum(part[use] for part in parts)))
    return LayerFit(
        layer=reference.layer,
        plan=plan,
        alpha=float(weights[0]),
        beta=float(weights[1]) if len(parts) > 1 else None,
        alpha_error=float(errors[0]),
        beta_error=float(errors[1]) if len(parts) > 1 else 0.0,
        residual=float(np.linalg.norm(rest[use])) / whole if whole else math.nan,
        worst_row=float(rows.max()),
        row=int(rows.argmax()),
        bad_rows=tuple(np.flatnonzero(rows > row_limit).tolist()),
        used=int(use.sum()),
        left_out=int((~use).sum()),
        finite=True,
        ids_known=known,
    )


def attribution(
    fits: Sequence[LayerFit], floors: Sequence[LayerFit], facts: ModelFacts, precision: Precision
) -> Signal:
    """The signal of all layers and plans; floors: fits of the legal variants."""
    if not fits:
        return absent(NAME, "this backend cannot look into its MoE layers")
    limits = _widened(LIMITS[precision], floors)
    bad = [(fit, _wrong(fit, limits, facts)) for fit in fits]
    failed = [(fit, words) for fit, words in bad if words]
    worst = max(fits, key=lambda fit: _excess(fit) if fit.finite else math.inf)
    numbers = {
        "max_residual": max((fit.residual for fit in fits), key=_nan_last),
        "max_row_residual": max((fit.worst_row for fit in fits), key=_nan_last),
        "tokens": float(sum(fit.used for fit in fits)),
        "residual_limit": limits.residual,
        "row_limit": limits.row,
    }
    unused = [fit.layer for fit in fits if fit.finite and not fit.used]
    if failed:
        outcome, message = Outcome.FAIL, _failure(failed, fits)
    elif unused:
        outcome, message = Outcome.INCONCLUSIVE, f"layer {unused[0]}: no token has the reference's experts"
    else:
        layers = len({fit.layer for fit in fits})
        outcome = Outcome.PASS
        within = max(map(_factor_error, fits))
        message = f"in {layers} MoE layers the weights of the components are 1 within {within:.2g}"
    return Signal(
        name=NAME,
        outcome=outcome,
        message=message,
        value=_excess(worst) if worst.finite else math.nan,
        limit=limits.factor,
        floor=max(map(_excess, floors), default=None),
        numbers=numbers,
    )


def describe(fit: LayerFit, facts: ModelFacts, limits: Limits) -> str:
    """What is wrong with one layer, for its line of the report; empty where nothing is."""
    return _wrong(fit, limits, facts)


def _comparable(reference: LayerCapture, candidate: LayerCapture) -> tuple[npt.NDArray[np.bool_], bool]:
    """Tokens to fit: those with the same experts; where the candidate hides its ids, those that are no ties."""
    tokens = reference.output.shape[0]
    if reference.topk_ids is not None and candidate.topk_ids is not None:
        same = np.sort(reference.topk_ids, axis=1) == np.sort(candidate.topk_ids, axis=1)
        return np.asarray(same.all(axis=1)), True
    if reference.choice_gap is not None:
        return np.asarray(reference.choice_gap > TIE_GAP), False
    return np.ones(tokens, dtype=np.bool_), False


def _least_squares(parts: Sequence[Float64], y: Float64) -> tuple[Float64, Float64]:
    """Weights of the parts and their standard errors: the larger of those with independent elements, and those with
    independent tokens (the sandwich of clustered errors), for what rounds one value of a token moves all its outputs.
    """
    gram = np.array([[np.vdot(one, two) for two in parts] for one in parts])
    right = np.array([np.vdot(part, y) for part in parts])
    inverse = np.linalg.pinv(gram)
    weights = inverse @ right
    rest = y - sum(weight * part for weight, part in zip(weights, parts, strict=True))
    variance = float(np.vdot(rest, rest)) / max(1, y.size - len(parts))
    tokens = len(y)
    scores = np.stack([(part * rest).sum(axis=1) for part in parts], axis=1)
    clustered = inverse @ (scores.T @ scores) @ inverse * (tokens / max(1, tokens - 1))
    return weights, np.sqrt(np.maximum(np.diag(inverse) * variance, np.maximum(np.diag(clustered), 0.0)))


def _factor_error(fit: LayerFit) -> float:
    """The larger of |alpha - 1| and |beta - 1|."""
    return max(abs(fit.alpha - 1), abs(fit.beta - 1) if fit.beta is not None else 0.0)


def _noise(fit: LayerFit) -> float:
    """What the fit of so few numbers leaves open."""
    return ERRORS * max(fit.alpha_error, fit.beta_error)


def _excess(fit: LayerFit) -> float:
    """The factor's error beyond that."""
    alpha = abs(fit.alpha - 1) - ERRORS * fit.alpha_error
    beta = abs(fit.beta - 1) - ERRORS * fit.beta_error if fit.beta is not None else 0.0
    return max(alpha, beta, 0.0)


def _widened(limits: Limits, floors: Sequence[LayerFit]) -> Limits:
    """The limits, or twice what a legal variant does where that is more."""
    return Limits(
        factor=max([limits.factor, *(2 * _excess(fit) for fit in floors)]),
        residual=max([limits.residual, *(2 * fit.residual for fit in floors)]),
        row=max([limits.row, *(2 * fit.worst_row for fit in floors)]),
        kl=limits.kl,
        top1=limits.top1,
        texts=limits.texts,
    )


def _wrong(fit: LayerFit, limits: Limits, facts: ModelFacts) -> str:
    if not fit.finite:
        return f"output of token {fit.row} is not finite"
    if not fit.used:
        return ""
    named = name_weights(fit.alpha, fit.beta, facts, limits.factor + _noise(fit))
    rest = f"{100 * fit.residual:.2g} % of the output is no combination of the reference's components"
    if not fit.residual <= limits.residual:
        return f"{named}, and {rest}" if _factor_error(fit) > fit.residual and named else rest
    if named:
        return named
    if not fit.worst_row <= limits.row:
        return f"token {fit.row} departs by {100 * fit.worst_row:.2g} % of its components"
    return ""


def _failure(failed: Sequence[tuple[LayerFit, str]], fits: Sequence[LayerFit]) -> str:
    layers = sorted({fit.layer for fit, _ in failed})
    everywhere = len(layers) == len({fit.layer for fit in fits})
    words = failed[0][1]
    where = "every MoE layer" if everywhere and len(layers) > 1 else f"layer {', '.join(map(str, layers))}"
    plans = {one.plan for one, _ in failed}
    only = "" if len(plans) == len({one.plan for one in fits}) else f" (calls: {', '.join(sorted(plans))})"
    return f"{words}, in {where}{only}"


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
