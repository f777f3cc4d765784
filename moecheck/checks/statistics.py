"""The check of many elements together: small deviations that no single element shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moecheck.bounds import FLUSHED, FP32_UNIT, GLOBAL_FLIPS, ROW_FLIPS, SURELY, disagreement_limit, projection_limit
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.mean_squares import limited_mean_squares
from moecheck.checks.sample import FEWEST, Bool, Sample, Squares, Statistic
from moecheck.formats import AnyArray, Float64
from moecheck.null_ensemble import FEWEST_ROWS, usual_limit, usual_row
from moecheck.oracle import ErrorModel, Values

ENOUGH_ROWS = 16  # whose spread gives a standard error
TIE_ULPS = 8.0  # units of fp32's roundoff that an activation may be off
WIDE_STEP = 64.0  # times that error: the least distance of the format's numbers of which a few lie near a tie


def judge_statistics(
    out: Float64,
    expected: Values,
    *,
    step: Float64,
    bias: float,
    row_bias: float = 0.0,
    row: str,
    bits: bool,
    elementwise: bool = False,
    groups: dict[str, AnyArray] | None = None,
) -> Judgement | None:
    """FAIL when a statistic of out - rounded or of z = (out - true) / sigma exceeds what rounding explains.

    out: [rows, columns] float64. step: [rows, columns], one unit in the last place of the output. bias: relative
    deviation that the accumulator's truncation explains. row_bias: what each row has besides, to one side or the
    other. row: what a row is called. groups: noun -> [rows, slots] int, ids of the groups that each row belongs to
    (`expert`), -1 for none. bits: whether `rounded` is rounded as the kernel should, so that most bits must agree.
    elementwise: the output is a function of single inputs, whose errors may all be to one side. None where there is
    too little to average.
    """
    model = expected.model
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(out) & np.isfinite(expected.true) & np.isfinite(expected.rounded)
        used = finite & (expected.sigma > FLUSHED)
    if model is None:
        return None
    model, used = _finite_rows(model, used)
    if np.count_nonzero(used) < FEWEST:
        return None
    # Two independent requantisations of a number differ by more than a bug does: only the kernel's own tells.
    origin = expected.true if expected.ensemble is None else expected.rounded
    sigma = np.where(used, expected.sigma, 1.0)
    simulated = () if expected.ensemble is None else expected.ensemble.errors
    sample = Sample(
        error=np.where(used, out - expected.rounded, 0.0),
        squares=Squares.of(np.where(used, (out - origin) / sigma, 0.0)),
        simulated=tuple(Squares.of(np.where(used, errors, 0.0) / sigma) for errors in simulated),
        expected=expected,
        model=model,
        used=used,
        step=np.where(used, step, 0.0),
    )
    found = [
        *_disagreement(sample, compared=bits),
        *_slopes(sample, bias=bias, row_bias=row_bias, row=row, elementwise=elementwise),
        *_mean(sample, bias=bias),
        *limited_mean_squares(sample, row=row, groups=groups or {}),
        *_usual_row(sample, bias=bias, row=row, bits=bits),
    ]
    numbers = {statistic.name: statistic.value for statistic in found} | _units(sample)
    numbers |= {f"limit_{statistic.name}": statistic.limit for statistic in found}
    failing = [statistic for statistic in found if not statistic.passes]
    first = max(failing, key=lambda statistic: abs(statistic.value) / max(statistic.limit, FLUSHED), default=None)
    return Judgement(
        check="statistics",
        verdict=Verdict.PASS if first is None else Verdict.FAIL,
        message="" if first is None else first.message,
        numbers={**numbers, **_limits(sample, found)},
        where={} if first is None else first.where,
    )


def reproduces(out: Float64, expected: Values) -> bool:
    """Whether most of the bits of out [rows, columns] are those of the rounded reference, as in the right contract."""
    with np.errstate(invalid="ignore"):
        used = np.isfinite(out) & np.isfinite(expected.rounded) & (expected.sigma > FLUSHED)
    if expected.model is None or not used.any():
        return True
    return bool((out != expected.rounded)[used].mean() <= _most_disagreement(expected, expected.model, used))


def judge_near_slope(out: Float64, expected: Values, *, bias: float) -> Judgement | None:
    """FAIL when the output is off by a factor from the reference of a contract that is nearly the kernel's.

    Where it rounds elsewhere than that reference, the model of flips does not hold, so the standard error is taken
    from the rows, which are independent: that of a ratio estimator. bias: what rounding elsewhere explains. None for
    few rows.
    """
    model = expected.model
    with np.errstate(invalid="ignore"):
        used = np.isfinite(out) & np.isfinite(expected.rounded) & (expected.sigma > FLUSHED)
    if model is None or len(out) < ENOUGH_ROWS or np.count_nonzero(used) < FEWEST:
        return None
    c = np.where(used, model.weights, 0.0)
    along = np.einsum("th,th->t", c, np.where(used, out - expected.rounded, 0.0))
    size = np.einsum("th,th->t", c, np.where(used, expected.rounded, 0.0))
    if not size.sum() > 0.0:
        return None
    slope = float(along.sum() / size.sum())
    rest = along - slope * size
    error = float(np.sqrt(np.sum(np.square(rest)) * len(rest) / (len(rest) - 1)) / size.sum())
    limit = bias + 7.5 * error
    message = (
        f"The output as a whole is 1 {slope:+.2g} times what the reference gives that rounds most nearly as the kernel "
        f"does; rounding elsewhere explains 1 ± {limit:.2g}."
    )
    passes = abs(slope) <= limit
    return Judgement(
        check="near_contract",
        verdict=Verdict.PASS if passes else Verdict.FAIL,
        message="" if passes else message,
        numbers={"near_slope_error": slope, "limit_near_slope_error": limit},
    )


def _finite_rows(model: ErrorModel, used: Bool) -> tuple[ErrorModel, Bool]:
    """The model and the used elements without rows whose errors overflow: these are left to the other checks."""
    columns = ("slope_variance", "slope_flip", "mean_variance", "mean_flip")
    finite = np.logical_and.reduce([np.isfinite(getattr(model, name)) for name in columns])
    if finite.all():
        return model, used
    kept = {name: np.where(finite, getattr(model, name), 0.0) for name in columns}
    return replace(model, **kept), used & finite[:, None]


def _most_disagreement(expected: Values, model: ErrorModel, used: Bool) -> float:
    """The largest share of the elements used whose bits an honest kernel has otherwise than the rounded reference."""
    count = len(used)
    if expected.ensemble is None:
        return disagreement_limit(float(model.disagreement[used].mean()), rows=count)
    shares = [float((errors != 0.0)[used].mean()) for errors in expected.ensemble.errors]
    return disagreement_limit(max(shares), rows=count) + 1.0 / count  # one flip changes most of a row


def _disagreement(sample: Sample, *, compared: bool) -> Iterator[Statistic]:
    """Share of elements whose bits are not those of the rounded reference."""
    if compared:
        yield Statistic(
            name="disagreement",
            value=float((sample.error != 0.0)[sample.used].mean()),
            limit=_most_disagreement(sample.expected, sample.model, sample.used),
            said="{value:.2%} of the elements have other bits than the reference that rounds where this kernel does "
            "({limit:.2%} is normal): on this case it rounds elsewhere, or its values are slightly off.",
            where={},
        )


def _slopes(sample: Sample, *, bias: float, row_bias: float, row: str, elementwise: bool) -> Iterator[Statistic]:
    """Slope error b - 1 with b = sum c out / sum c rounded, of all elements and of the worst row."""
    model, c = sample.model, np.where(sample.used, sample.model.weights, 0.0)
    along = np.einsum("th,th->t", c, sample.error)
    size = np.einsum("th,th->t", c, np.where(sample.used, sample.expected.rounded, 0.0))
    flip = np.maximum(np.max(np.abs(c) * sample.step, axis=1, initial=0.0), model.slope_flip)
    moved = np.where(sample.used, model.disagreement * sample.step, 0.0) * elementwise
    one_side = np.einsum("th,th->t", np.abs(c), moved)
    total = float(size.sum())
    if not total > 0.0:
        return
    limit = projection_limit(np.array(model.slope_variance.sum()), np.array(flip.max(initial=0.0)), flips=GLOBAL_FLIPS)
    yield Statistic(
        name="slope_error",
        value=float(along.sum()) / total,
        limit=(float(limit) + float(one_side.sum())) / total + bias + row_bias / float(np.sqrt(max(len(c), 1))),
        said="The output as a whole is 1 {value:+.2g} times what it should be; rounding explains 1 ± {limit:.2g}.",
        where={},
    )
    limits = projection_limit(model.slope_variance, flip, flips=ROW_FLIPS) + (bias + row_bias) * np.abs(size) + one_side
    enough = (np.count_nonzero(c, axis=1) >= FEWEST) & (size > 0.0) & (limits > 0.0)
    if not enough.any():
        return
    excess = np.where(enough, np.abs(along) / np.where(enough, limits, 1.0), -1.0)
    worst = int(np.argmax(excess))
    yield Statistic(
        name="worst_row_slope_error",
        value=float(along[worst] / size[worst]),
        limit=float(limits[worst] / size[worst]),
        said=f"{row} {worst} is 1 {{value:+.2g}} times what it should be; rounding explains 1 ± {{limit:.2g}}.",
        where={row: worst},
    )


def _mean(sample: Sample, *, bias: float) -> Iterator[Statistic]:
    """Mean of (out - rounded) / sigma: an offset."""
    c = np.where(sample.used, 1.0 / np.where(sample.used, sample.expected.sigma, 1.0), 0.0)
    flip = np.maximum(np.max(c * sample.step, axis=1, initial=0.0), sample.model.mean_flip)
    variance = np.array(sample.model.mean_variance.sum())
    slack = bias * float(np.sum(c * np.abs(np.where(sample.used, sample.expected.true, 0.0))))
    slack += float(np.sum(c * sample.step, where=_near_ties(sample)))
    limit = float(projection_limit(variance, np.array(flip.max(initial=0.0)), flips=GLOBAL_FLIPS)) + slack
    count = np.count_nonzero(sample.used)
    yield Statistic(
        name="mean_z",
        value=float(np.sum(c * sample.error)) / count,
        limit=limit / count,
        said="The output is too large by {value:.3g} standard deviations of rounding on average; up to {limit:.2g} is "
        "normal.",
        where={},
    )


def _near_ties(sample: Sample) -> Bool:
    """Elements so near the middle of two numbers of the format that fp32's last bits round them all to one side.

    An activation has many: for a small gate g, sigmoid(g) is 1/2 in fp32, and g (u + 1) / 2 lies in the middle, often.
    """
    with np.errstate(invalid="ignore"):
        noise = TIE_ULPS * FP32_UNIT * np.abs(sample.expected.true)
        away = np.abs(np.abs(sample.expected.rounded - sample.expected.true) - sample.step / 2)
        return np.asarray(sample.used & (away <= noise) & (WIDE_STEP * noise < sample.step))


def _usual_row(sample: Sample, *, bias: float, row: str, bits: bool) -> Iterator[Statistic]:
    """Root mean square of z of the row that a quarter of them are below: few rows have a flip of a requantiser.

    As many elements may be off by one unit in the last place as the statistic of disagreement allows.
    """
    rows = np.flatnonzero(sample.used.any(axis=1))
    if sample.expected.ensemble is None or len(rows) < FEWEST_ROWS:
        return
    counts = sample.used.sum(axis=1)[rows]
    pooled = np.array([np.sqrt(squares.by_row[rows] / counts) for squares in sample.simulated])
    sizes = _sizes(sample, sample.expected.rounded)[rows]
    off = min([1.0, *(statistic.limit for statistic in _disagreement(sample, compared=bits))])
    last_place = np.sqrt(off) * float(_sizes(sample, sample.step)[rows].max())
    own = np.sqrt(sample.squares.by_row[rows] / counts)
    yield Statistic(
        name="usual_row_rms_z",
        value=float(np.sort(own)[usual_row(len(rows))]),
        limit=float(np.hypot(usual_limit(pooled), last_place)) + bias * float(sizes.max()),
        said=f"The error of three quarters of the {row}s is more than {{value:.3g}} times that of requantisation, and "
        "{limit:.3g} is what fp32 sums explain: they are requantised differently, or are slightly off.",
        where={},
    )


def _sizes(sample: Sample, values: Float64) -> Float64:
    """[rows]: root mean square of values / sigma. values: [rows, columns]."""
    ratio = np.where(sample.used, values / np.where(sample.used, sample.expected.sigma, 1.0), 0.0)
    return np.asarray(np.sqrt(np.square(ratio).sum(axis=1) / np.maximum(sample.used.sum(axis=1), 1)))


def _units(sample: Sample) -> dict[str, float]:
    """Histogram of |out - rounded| in units in the last place: shares of 0 (the very bits), 1, and more."""
    units = np.abs(sample.error[sample.used]) / sample.step[sample.used]
    return {
        "agreement": float((units == 0.0).mean()),
        "off_by_one_ulp": float(((units > 0.0) & (units < 1.5)).mean()),
        "off_by_more_ulps": float((units >= 1.5).mean()),
        "expected_agreement": float(1.0 - sample.model.disagreement[sample.used].mean()),
    }


def _limits(sample: Sample, found: list[Statistic]) -> dict[str, float]:
    """What the run would surely have seen: the smallest factor of all of the output; the slope's standard error."""
    slope = next((statistic for statistic in found if statistic.name == "slope_error"), None)
    if slope is None:
        return {}
    c = np.where(sample.used, sample.model.weights * sample.expected.rounded, 0.0)
    error = float(np.sqrt(sample.model.slope_variance.sum()) / c.sum())
    usual = next((statistic for statistic in found if statistic.name == "usual_row_rms_z"), None)
    size = float(np.median(_sizes(sample, sample.expected.rounded)[sample.used.any(axis=1)]))
    smallest = slope.limit if usual is None or not size > 0.0 else min(slope.limit, usual.limit / size)
    return {"slope_error_se": error, "smallest_factor": SURELY * smallest}
