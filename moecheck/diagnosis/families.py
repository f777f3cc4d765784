"""Hypotheses with numbers in them, each found from the residual: factors, lost rows, dropped experts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecheck.bounds import z_limit
from moecheck.checks.place import names
from moecheck.formats import Float64
from moecheck.mutants.call import Ids, Prediction

from .evidence import Bool, Evidence, Fit, fit_factor, z_of
from .hypothesis import ANYTHING, CERTAIN, Hypothesis, number
from .parts import Parts

NOTHING = 0.1  # a fitted factor this near to 0, or to 1, is taken for it; the score decides
MOST_COMPARED = 1 << 26  # elements looked at to find which row another one repeats


def families(
    evidence: Evidence, parts: Parts | None, experts: Ids | None, row: str, bias: float
) -> Iterator[Hypothesis]:
    """Every fitted hypothesis about rows, columns and experts that has a chance.

    bias: how far the slope of an honest kernel may lie from 1.
    """
    yield from _lines(evidence, row)
    yield from _unwritten(evidence, row)
    if parts is not None:
        yield from _slots(evidence, parts, bias)
    elif experts is not None:
        yield from _groups(evidence, experts)


def _lines(evidence: Evidence, row: str) -> Iterator[Hypothesis]:
    """Rows, or columns, that are not finite, zero, or repeat another one."""
    for axis, noun in ((0, row), (1, "column")):
        turned = evidence if axis == 0 else _transposed(evidence)
        bad = bad_rows(turned)
        if not 0 < bad.sum() < max(len(bad), 2):
            continue
        found = _explain_rows(turned, bad, noun)
        if found is None:
            continue
        name, words, prediction = found
        if axis == 1:
            prediction = Prediction(prediction.value.T, prediction.sigma.T)
            name = {"1_token_zero": "last_col_stale", "2_tokens_swapped": "columns_swapped"}.get(name, name)
        yield Hypothesis(name=name, words=words, prediction=prediction, complexity=3 + axis)


def bad_rows(evidence: Evidence) -> Bool:
    """[rows]: those that rounding does not explain."""
    z = np.where(evidence.judged, z_of(evidence.out, evidence.reference), 0.0)
    with np.errstate(invalid="ignore"):
        bad = (z.max(axis=1, initial=0.0) > z_limit(z.size)) | (np.sqrt(np.square(z).mean(axis=1)) > 3.0)
    return np.asarray(bad)


def _explain_rows(evidence: Evidence, bad: Bool, noun: str) -> tuple[str, str, Prediction] | None:
    value, sigma = evidence.reference.value.copy(), evidence.reference.sigma.copy()
    indices = np.flatnonzero(bad)
    lost = np.array([not np.isfinite(evidence.out[i][evidence.judged[i]]).any() for i in indices])
    zero = np.array([not np.any(evidence.out[i][evidence.judged[i]]) for i in indices])
    source = np.full(len(indices), -1)
    rest = ~lost & ~zero
    if rest.any() and len(indices) * evidence.out.size <= MOST_COMPARED:
        source[rest] = [_repeated(evidence, int(i)) for i in indices[rest]]
    if (rest & (source < 0)).any():
        return None
    value[indices[lost]] = np.nan
    value[indices[zero]], sigma[indices[zero]] = 0.0, 0.0
    copies = indices[rest]
    value[copies], sigma[copies] = evidence.reference.value[source[rest]], evidence.reference.sigma[source[rest]]
    texts, name = [], "wrong_rows"
    if lost.any():
        texts.append(f"{names(noun, indices[lost])} {_are(lost)} NaN or Inf")
        name = "nan_rows"
    if zero.any():
        texts.append(f"{names(noun, indices[zero])} {_are(zero)} zero: lost or never written")
        name = "1_token_zero"
    if rest.any():
        pairs = dict(zip(copies.tolist(), source[rest].tolist(), strict=True))
        if all(pairs.get(other) == one for one, other in pairs.items()):
            texts.append(f"{names(noun, copies)} are exchanged with each other")
            name = "2_tokens_swapped"
        else:
            one, other = next(iter(pairs.items()))
            verb = "holds" if len(copies) == 1 else "hold"
            texts.append(f"{names(noun, copies)} {verb} other {noun}s' values: {noun} {one} those of {noun} {other}")
            name = "wrong_rows"
    return name, ", ".join(texts), Prediction(value, sigma)


def _repeated(evidence: Evidence, row: int) -> int:
    """Which other row of the reference an output row is nearest to, if it is near enough; else -1."""
    judged = evidence.judged[row]
    value, sigma = evidence.reference.value[:, judged], evidence.reference.sigma[:, judged]
    z = z_of(np.broadcast_to(evidence.out[row][judged], value.shape), Prediction(value, sigma))
    distance = np.square(np.where(np.isfinite(value), z, np.inf)).mean(axis=1)
    distance[row] = np.inf
    nearest = int(np.argmin(distance))
    return nearest if distance[nearest] <= 4.0 else -1


def _unwritten(evidence: Evidence, row: str) -> Iterator[Hypothesis]:
    """Elements that are exactly zero, or not finite, where the right ones are neither."""
    value, sigma = evidence.reference
    zero = evidence.judged & (evidence.out == 0.0) & (np.abs(value) > 10.0 * sigma)
    lost = evidence.judged & ~np.isfinite(evidence.out) & np.isfinite(value)
    for name, mask, filling, what in (
        ("unwritten", zero, 0.0, "zero: never written"),
        ("nan_rows", lost, np.nan, "NaN or Inf"),
    ):
        if mask.any():
            prediction = Prediction(np.where(mask, filling, value), np.where(mask, 0.0, sigma))
            where = names(row, np.flatnonzero(mask.any(axis=1)))
            words = f"{int(mask.sum())} of {mask.size} elements are {what}; they are in {where}"
            yield Hypothesis(name=name, words=words, prediction=prediction, complexity=6)


def _slots(evidence: Evidence, parts: Parts, bias: float) -> Iterator[Hypothesis]:
    """Experts that contribute nothing or too much, single slots that are lost, and any other weights."""
    value, sigma = evidence.reference
    fitted = _expert_factors(evidence, parts)
    gone = [e for e, one in fitted.items() if abs(one.factor) < NOTHING]
    if 0 < len(gone) < len(fitted):
        missing = sum((parts.of_expert(e) for e in gone), np.zeros(value.shape))
        verb = "contributes" if len(gone) == 1 else "contribute"
        words = f"{names('expert', np.array(gone))} {verb} nothing"
        yield Hypothesis(
            name="expert_dropped", words=words, prediction=Prediction(value - missing, sigma), complexity=2
        )
    elif len(fitted) > 1:
        expert = max(fitted, key=lambda e: abs(fitted[e].factor - 1.0) / max(fitted[e].error, 1e-12))
        part = parts.of_expert(expert)
        fit = fit_factor(evidence.out - (value - part), part, sigma, evidence.judged)
        if fit is not None:
            words = f"expert {expert} contributes {number(fit.factor, fit.error)} times what it should"
            scaled = Prediction(value + (fit.factor - 1.0) * part, sigma * max(1.0, abs(fit.factor)))
            certain = abs(fit.factor - 1.0) > CERTAIN * fit.error + bias
            yield Hypothesis(name="expert_factor", words=words, prediction=scaled, complexity=3, slight=certain)
    ratio = _slot_factors(evidence, parts)
    lost = np.abs(ratio) < NOTHING
    if lost.any() and (lost | (np.abs(ratio - 1.0) < NOTHING)).all():
        missing = np.where(lost.T[:, :, None], parts.slots, 0.0).sum(axis=0)
        token, slot = (int(i) for i in np.argwhere(lost)[0])
        words = f"{int(lost.sum())} of {lost.size} slots are lost, first that of token {token}, slot {slot}"
        if parts.experts[token, slot] >= 0:
            words += f", expert {parts.experts[token, slot]}"
        yield Hypothesis(name="slot_lost", words=words, prediction=Prediction(value - missing, sigma), complexity=5)
    other = parts.rest + (ratio.T[:, :, None] * parts.slots).sum(axis=0)
    token, slot = (int(i) for i in np.unravel_index(int(np.argmax(np.abs(ratio - 1.0))), ratio.shape))
    weights = parts.weights[token, slot]
    words = (
        f"the experts' outputs are right and their weights are not: token {token}, slot {slot} weighs "
        f"{ratio[token, slot] * weights:.4g} instead of {weights:.4g}"
    )
    yield Hypothesis(
        name="other_weights",
        words=words,
        prediction=Prediction(other, sigma),
        complexity=ANYTHING,
        parameters=ratio.size,
    )


def _expert_factors(evidence: Evidence, parts: Parts) -> dict[int, Fit]:
    """Expert -> the factor of its contribution, all fitted together by weighted least squares.

    The errors are those of independent elements: they only say which expert stands out.
    """
    experts = np.unique(parts.experts[parts.experts >= 0])
    if not len(experts):
        return {}
    position = np.searchsorted(experts, np.maximum(parts.experts, experts[0]))
    slots, target = _weighted(evidence, parts)
    gram = np.zeros((len(experts), len(experts)))
    right = np.zeros(len(experts))
    products = np.einsum("sth,rth->tsr", slots, slots)
    dots = np.einsum("sth,th->ts", slots, target)
    held = parts.experts >= 0
    for s in range(held.shape[1]):
        np.add.at(right, position[held[:, s], s], dots[held[:, s], s])
        for r in range(held.shape[1]):
            both = held[:, s] & held[:, r]
            np.add.at(gram, (position[both, s], position[both, r]), products[both, s, r])
    solution = np.linalg.lstsq(gram, right, rcond=1e-12)[0]
    if not gram.diagonal().any():
        return {}
    errors = np.sqrt(np.maximum(np.linalg.pinv(gram, rcond=1e-12, hermitian=True).diagonal(), 0.0))
    return {
        int(e): Fit(factor=float(1.0 + c), error=float(error))
        for e, c, error in zip(experts, solution, errors, strict=True)
    }


def _slot_factors(evidence: Evidence, parts: Parts) -> Float64:
    """[T, k]: the factor of each slot's contribution, fitted per token; 1 where a slot adds nothing."""
    slots, target = _weighted(evidence, parts)
    products = np.einsum("sth,rth->tsr", slots, slots)
    dots = np.einsum("sth,th->ts", slots, target)
    ratio = np.ones(dots.shape)
    for token in range(len(dots)):
        ratio[token] += np.linalg.lstsq(products[token], dots[token], rcond=1e-10)[0]
    return ratio


def _weighted(evidence: Evidence, parts: Parts) -> tuple[Float64, Float64]:
    """Slots [k, T, H] and residual [T, H] divided by sigma, 0 where an element does not count."""
    value, sigma = evidence.reference
    usable = evidence.judged & np.isfinite(evidence.out) & np.isfinite(value) & (sigma > 0) & np.isfinite(sigma)
    inverse = np.where(usable, 1.0 / np.where(usable, sigma, 1.0), 0.0)
    residual = np.where(usable, evidence.out - np.where(usable, value, 0.0), 0.0)
    return np.nan_to_num(parts.slots) * inverse, residual * inverse


def _groups(evidence: Evidence, experts: Ids) -> Iterator[Hypothesis]:
    """Groups of rows (grouped_gemm) whose outputs are zero."""
    value, sigma = evidence.reference
    bad = bad_rows(evidence)
    owner = experts[:, 0]
    hit = np.unique(owner[bad & (owner >= 0)])
    rows = np.isin(owner, hit)
    if len(hit) and not np.any(np.where(evidence.judged, evidence.out, 0.0)[rows]) and not rows.all():
        prediction = Prediction(np.where(rows[:, None], 0.0, value), np.where(rows[:, None], 0.0, sigma))
        words = f"the rows of {names('expert', hit)} are zero"
        yield Hypothesis(name="expert_dropped", words=words, prediction=prediction, complexity=2)


def _transposed(evidence: Evidence) -> Evidence:
    return Evidence(
        out=evidence.out.T,
        reference=Prediction(evidence.reference.value.T, evidence.reference.sigma.T),
        rounded=evidence.rounded.T,
        judged=evidence.judged.T,
    )


def _are(mask: Bool) -> str:
    return "is" if mask.sum() == 1 else "are"
