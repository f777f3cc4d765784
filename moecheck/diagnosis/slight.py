"""Hypotheses that change all outputs a little: a factor, a store that truncates, a constant in the normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from moecheck.cases import Case
from moecheck.formats import Float64, round_to, ulp
from moecheck.mutants.call import Call, Prediction, slots_of, with_routing
from moecheck.mutants.expert_maths import Maths, right_hidden, right_product, value_by
from moecheck.mutants.rounding import GEMMS, LOW_SUMS, TWO_GEMMS
from moecheck.numerics import INPUT, Numerics

from .evidence import SHARED, Evidence, fit_factor
from .hypothesis import CERTAIN, Hypothesis, number
from .parts import Parts

NEAR = 0.25  # how far from 1 the fitted share of a foretold difference may lie
MOST_EPS = 0.1  # of a constant added to the sum of the weights
FEW_ROWS = 3  # with a factor of their own
ROW_CERTAIN = 5.0 * SHARED  # standard errors of independent elements by which a row's factor must differ from 1


class Difference(NamedTuple):
    """What a hypothesis without free numbers adds to the right output, [rows, columns].

    right: what it is added to, where that has roundings that the hypothesis presumes; None for the reference.
    """

    name: str
    words: str
    amount: Float64
    right: Float64 | None = None


def slight_hypotheses(
    evidence: Evidence,
    call: Call,
    parts: Parts | None,
    row: str,
    *,
    bias: float,
    numerics: Numerics | None,
    large: bool,
) -> Iterator[Hypothesis]:
    """Every slight hypothesis that has a chance.

    bias: how far an honest slope may lie from 1. numerics: the contract, None where it is unknown and `rounded` cannot
    be trusted. large: too much work for references of one's own.
    """
    base = evidence.rounded if numerics is not None else evidence.reference.value
    yield from _factor(evidence, base, bias)
    yield from _part_factors(evidence, parts, bias)
    yield from _row_factors(evidence, base, bias, row)
    if not large:
        yield from _differences(evidence, base, call, numerics)
    if parts is not None and call.case.op == "moe_layer":
        yield from _eps(evidence, base, call, parts)


def _factor(evidence: Evidence, base: Float64, bias: float) -> Iterator[Hypothesis]:
    value, sigma = evidence.reference
    fit = fit_factor(evidence.out, base, sigma, evidence.judged)
    if fit is None or abs(fit.factor - 1.0) <= CERTAIN * fit.error + bias:
        return
    yield Hypothesis(
        name="factor",
        words=f"the output is {number(fit.factor, fit.error)} times the right one",
        prediction=Prediction(fit.factor * value, np.abs(fit.factor) * sigma),
        complexity=1,
        slight=True,
        everywhere=True,
    )


def _part_factors(evidence: Evidence, parts: Parts | None, bias: float) -> Iterator[Hypothesis]:
    """A factor on the routed experts' part alone, or on the shared ones'."""
    if parts is None or not np.any(parts.rest):
        return
    sigma = evidence.reference.sigma
    for name, part, others, label in (
        ("routed_factor", parts.routed, parts.rest, "the routed part"),
        ("shared_factor", parts.rest, parts.routed, "the shared experts' part"),
    ):
        fit = fit_factor(evidence.out - others, part, sigma, evidence.judged)
        if fit is not None and abs(fit.factor - 1.0) > CERTAIN * fit.error + bias:
            yield Hypothesis(
                name=name,
                words=f"{label} is {number(fit.factor, fit.error)} times the right one",
                prediction=Prediction(others + fit.factor * part, sigma * max(1.0, abs(fit.factor))),
                complexity=2,
                slight=True,
                everywhere=True,
            )


def _row_factors(evidence: Evidence, base: Float64, bias: float, row: str) -> Iterator[Hypothesis]:
    """A factor of its own on very few rows."""
    value, sigma = evidence.reference
    usable = evidence.judged & np.isfinite(evidence.out) & np.isfinite(base) & (sigma > 0) & np.isfinite(sigma)
    weight = np.where(usable, 1.0 / np.square(np.where(usable, sigma, 1.0)), 0.0)
    x, y = np.where(usable, base, 0.0), np.where(usable, evidence.out, 0.0)
    total = (weight * x * x).sum(axis=1)
    factors = np.where(total > 0.0, (weight * x * y).sum(axis=1) / total, 1.0)
    errors = np.where(total > 0.0, 1.0 / np.sqrt(total), 0.0)
    wrong = np.flatnonzero(np.abs(factors - 1.0) > ROW_CERTAIN * errors + bias)
    if not 0 < len(wrong) <= FEW_ROWS or len(factors) < 2 * len(wrong):
        return
    own = np.ones((len(factors), 1))
    own[wrong, 0] = factors[wrong]
    each = ", ".join(f"{row} {i} is {number(factors[i], SHARED * errors[i])} times" for i in wrong)
    yield Hypothesis(
        name="row_factor",
        words=f"{each} what it should be, and the others are right",
        prediction=Prediction(own * value, np.maximum(np.abs(own), 1.0) * sigma),
        complexity=4,
        slight=True,
    )


def _differences(evidence: Evidence, base: Float64, call: Call, numerics: Numerics | None) -> Iterator[Hypothesis]:
    """Stores that truncate and sums that are kept low, where what they add is there and in full."""
    if call.case.dtype == "fp32":
        return
    value, sigma = evidence.reference
    for name, words, amount, right in (*_truncations(call, value), *_low_sums(call, numerics)):
        fit = fit_factor(evidence.out - (base if right is None else right), amount, sigma, evidence.judged)
        if fit is not None and abs(fit.factor - 1.0) <= NEAR and fit.factor > CERTAIN * fit.error:
            yield Hypothesis(
                name=name,
                words=words,
                prediction=Prediction((value if right is None else right) + amount, sigma),
                complexity=1,
                slight=True,
                everywhere=True,
            )


def _truncations(call: Call, right: Float64) -> Iterator[Difference]:
    """What stores that truncate add on average: half an ulp towards zero each."""
    name, out = call.case.dtype, "truncates instead of rounding to nearest"
    yield Difference("truncating_store", f"the output's store {out}", _shrunk(right, name) - right)
    if call.case.op not in TWO_GEMMS:
        return
    h = value_by(call, partial(_shrunk_hidden, name=name, before=False))
    yield Difference("truncating_store", f"the store of h, the second GEMM's input, {out}", h - right)
    everything = value_by(
        call, partial(_shrunk_hidden, name=name, before=True), second=lambda x, w: _shrunk(right_product(x, w), name)
    )
    words = "every store (of both GEMMs' outputs, h and the output) truncates instead of rounding to nearest"
    yield Difference("truncating_store", words, _shrunk(everything, name) - right)


def _low_sums(call: Call, numerics: Numerics | None) -> Iterator[Difference]:
    """What partial sums that are stored low add; an unknown contract is taken to store gate, up and h low."""
    if call.case.op not in GEMMS:
        return
    stores = (numerics or Numerics(gate_up=INPUT, act_times_up=INPUT)).resolve(call.case.dtype)
    hidden = partial(_stored_hidden, stores=stores)
    right = value_by(call, hidden)
    for low in LOW_SUMS:
        if low.applies(call.case):
            product = partial(low.product, name=call.case.dtype)
            first = product if low.where == "both" else right_product
            wrong = value_by(call, hidden, first=first, second=product)
            yield Difference(low.name, low.words, wrong - right, right if numerics is None else None)


def _stored_hidden(maths: Maths, gate: Float64, up: Float64, *, stores: Numerics) -> Float64:
    def stored(values: Float64, name: str) -> Float64:
        return values if name == "fp32" else round_to(values, name)

    h = right_hidden(maths, stored(gate, stores.gate_up), stored(up, stores.gate_up))
    return stored(h, stores.act_times_up)


def _shrunk(values: Float64, name: str) -> Float64:
    """What a truncating store leaves on average."""
    return values - 0.5 * np.sign(values) * ulp(values, name)


def _shrunk_hidden(maths: Maths, gate: Float64, up: Float64, *, name: str, before: bool) -> Float64:
    if before:
        gate = _shrunk(gate, name)
        up = _shrunk(up, name) if maths.spec.gated else up
    return _shrunk(right_hidden(maths, gate, up), name)


def _eps(evidence: Evidence, base: Float64, call: Call, parts: Parts) -> Iterator[Hypothesis]:
    """The weights divided by their sum + eps; the eps is fitted."""
    sums = weight_sums(call)
    if sums is None:
        return
    value, sigma = evidence.reference
    eps = error = 0.0
    for _ in range(3):  # Newton's method: the output is not linear in eps
        scale = sums / (sums + eps)
        at = (scale - 1.0) * parts.routed
        slope = -scale / (sums + eps) * parts.routed
        fit = fit_factor(evidence.out - base - at, slope, sigma, evidence.judged)
        if fit is None or not 0.0 < eps + fit.factor < MOST_EPS:
            return
        eps, error = eps + fit.factor, fit.error
    if eps > CERTAIN * error:
        words, complexity = eps_words(eps, error)
        yield Hypothesis(
            name="renorm_eps",
            words=words,
            prediction=Prediction(value + (sums / (sums + eps) - 1.0) * parts.routed, sigma),
            complexity=complexity,
            slight=True,
            everywhere=True,
        )


def weight_sums(call: Call) -> Float64 | None:
    """[T, 1]: what the renormalisation divides by; None where the case has none, or where it is 1 for all tokens."""
    spec = call.case.spec.routing
    if not _divides(call.case):
        return None
    raw = with_routing(call, renormalize=False, routed_scaling_factor=1.0, scaling_needs_renormalize=False)
    slots = slots_of(raw)
    scale = np.where(slots.ids < call.case.num_experts, slots.weights, 0.0)
    return np.asarray(scale[:, : spec.top_k].sum(axis=1, keepdims=True))


def _divides(case: Case) -> bool:
    spec = case.spec.routing
    plain = spec.selection == "topk" and not spec.softmax_over_selected and not spec.per_expert_scale
    return plain and spec.renormalize


def eps_words(eps: float, error: float) -> tuple[str, int]:
    """The sentence for a constant that was fitted, and its complexity: a power of ten is the likeliest."""
    power = float(10.0 ** np.rint(np.log10(eps)))
    usual = abs(eps - power) <= max(3.0 * error, 0.02 * power)
    shown = f"{power:.0e}" if usual else f"{eps:.2e}"
    return f"{shown.replace('e-0', 'e-')} is added to the sum that the weights are divided by", 1 if usual else 2
