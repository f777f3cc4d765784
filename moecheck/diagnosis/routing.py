"""Names the known bug that wrong ids and weights of a router look like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecheck.bounds import weight_bound
from moecheck.cases import Case
from moecheck.checks.legal_sets import ambiguous_rows, choice_of
from moecheck.checks.place import names
from moecheck.checks.routing import judged_rows
from moecheck.formats import AnyArray, Float64, to_float64
from moecheck.mutants import mutants_for
from moecheck.mutants.call import Call, Ids, Outputs, Slots, call_of, slots_of
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle

from .evidence import LARGEST_Z, LEAST_GAIN, Bool, Score, fit_factor
from .hypothesis import CERTAIN, number
from .search import CLOSEST, SIMPLER, Diagnosis
from .slight import MOST_EPS, eps_words, weight_sums

BOUND = 4.0  # standard deviations that the bound on a weight stands for
LEAST_EPS = 1e-7  # of a constant added to the sum of the weights, which fp32 may show
FEW_TOKENS = 3  # with a factor of their own
SHOWN = 8  # tokens named at most before they count as many


class Guess(NamedTuple):
    """One explanation of ids and weights. judged: [T] tokens for which it has a single right answer."""

    name: str
    words: str
    slots: Slots
    judged: Bool
    sources: tuple[str, ...] = ()
    complexity: int = 0


def diagnose_routing(
    case: Case, outputs: tuple[AnyArray, ...], oracle: Oracle, numerics: Numerics | None
) -> Diagnosis | None:
    """What wrong outputs of topk_routing look like; None where the reference explains them or all tokens tie."""
    call = call_of(case, oracle)
    seen = Slots(to_float64(outputs[0]), outputs[1].astype(np.int64))
    right = slots_of(call)
    if seen.weights.shape != right.weights.shape or seen.ids.shape != right.ids.shape:
        return None
    judged = judged_rows(call.inputs) & ~_ambiguous(call, numerics)
    if not judged.any():
        return None
    z = _z_of(seen, right, call, numerics)
    reference = _score(z, judged, seen, right)
    if reference.unlike == 0 and reference.max_z <= BOUND:
        return None
    guesses = [*_catalogue(call, seen, numerics, judged), *_fitted(seen, right, z, judged, call)]
    scored = []
    for guess in guesses:
        own = _z_of(seen, guess.slots, call, numerics)
        scored.append((guess, _score(own, guess.judged, seen, guess.slots), _score(z, guess.judged, seen, right)))
    location = _location(z, judged, seen, right)
    explaining = [
        entry
        for entry in scored
        if entry[1].unlike == 0
        and entry[1].max_z <= BOUND
        and entry[2].cost - entry[1].cost > LEAST_GAIN
        and entry[0].judged.sum() >= 0.5 * judged.sum()
    ]
    if explaining:
        return _named(explaining, reference, location)
    text = "no known bug explains it"
    guess, s, against = min(scored, key=lambda entry: entry[1].cost / max(entry[2].cost, 1.0))
    if s.cost <= CLOSEST * against.cost:
        text += f"; closest: {guess.words}, which removes {1.0 - s.cost / against.cost:.1%} of the error"
        return Diagnosis(
            sentence=text + ".",
            hypothesis=None,
            issue=None,
            rms_z=s.rms_z,
            rms_z_reference=reference.rms_z,
            location=location,
            also=(guess.name,),
        )
    return Diagnosis(
        sentence=text + ".",
        hypothesis=None,
        issue=None,
        rms_z=reference.rms_z,
        rms_z_reference=reference.rms_z,
        location=location,
    )


def _named(explaining: list[tuple[Guess, Score, Score]], reference: Score, location: str) -> Diagnosis:
    least = min(s.cost for _, s, _ in explaining)
    near = [entry for entry in explaining if entry[1].cost <= least + SIMPLER]
    near.sort(key=lambda entry: entry[0].complexity)  # stable: then in the order of the catalogue
    guess, s, _ = near[0]
    equal = [other for other, _, _ in near[1:] if other.complexity <= guess.complexity]
    words = guess.words + (f" ({guess.sources[0]})" if guess.sources else "")
    if equal:
        words += f", or {'; or '.join(other.words for other in equal[:2])}: equal on this case"
    shown = f"{reference.unlike} slots hold other experts" if reference.unlike else f"rms z {reference.rms_z:.3g}"
    return Diagnosis(
        sentence=f"looks like: {words}; all ids and weights agree with it, against the reference {shown}.",
        hypothesis=guess.name,
        issue=guess.sources[0] if guess.sources else None,
        rms_z=s.rms_z,
        rms_z_reference=reference.rms_z,
        location=location,
        also=tuple(other.name for other in equal),
    )


def _catalogue(call: Call, seen: Slots, numerics: Numerics | None, judged: Bool) -> Iterator[Guess]:
    for mutant in mutants_for(call.case):
        if mutant.fitted:
            continue
        mutated = mutant.change(call)
        if isinstance(mutated, Outputs):  # the contract of the call tells of it in its own words
            continue
        assert isinstance(mutated, Call)
        guessed = slots_of(mutated)
        certain = judged
        if mutated.slots is None:  # a token that ties under the mutant may have chosen as legally
            other = (_sorted(seen).ids != _sorted(guessed).ids).any(axis=1)
            certain = judged & ~(other & _ambiguous(mutated, numerics))
        if certain.any():
            yield Guess(mutant.name, mutant.words, guessed, certain, mutant.sources)


def _fitted(seen: Slots, right: Slots, z: Float64, judged: Bool, call: Call) -> Iterator[Guess]:
    """A common factor, a factor of each token's own, and rows that are zero or another token's."""
    routed = (right.ids < call.case.num_experts) & judged[:, None]
    a, b = _sorted(seen), _sorted(right)
    same = (a.ids == b.ids) & judged[:, None] & (b.ids < call.case.num_experts)
    yield from _eps(seen, right, same, judged, call)  # before the factor, which a usual eps may equal
    fit = fit_factor(a.weights, b.weights, np.where(same, np.abs(b.weights), 0.0), same, sized=False)
    if fit is not None and abs(fit.factor - 1.0) > CERTAIN * fit.error + 1e-6:
        words = f"the weights are {number(fit.factor, fit.error)} times the right ones"
        scaled = np.where(routed, fit.factor, 1.0) * right.weights
        yield Guess("factor", words, Slots(scaled, right.ids), judged, complexity=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = np.where(same, a.weights, 0.0).sum(axis=1) / np.where(same, b.weights, 0.0).sum(axis=1)
    if same[judged].any() and np.isfinite(sums[judged]).all():
        words = (
            f"each token's weights are right up to a factor of its own, {_factor(sums[judged].min())} to "
            f"{_factor(sums[judged].max())}: another normalisation"
        )
        scaled = np.where(routed, sums[:, None], 1.0) * right.weights
        yield Guess("token_factor", words, Slots(scaled, right.ids), judged, complexity=3)
    bad = judged & (z.max(axis=1) > BOUND)
    if 0 < bad.sum() <= FEW_TOKENS < judged.sum() and np.isfinite(sums[bad]).all():
        each = ", ".join(f"{_factor(sums[t])} times those of token {t}" for t in np.flatnonzero(bad))
        scaled = np.where(routed & bad[:, None], sums[:, None], 1.0) * right.weights
        words = f"the weights are {each}, and those of the other tokens are right"
        yield Guess("row_factor", words, Slots(scaled, right.ids), judged, complexity=2)
    if 0 < bad.sum() < judged.sum():
        yield from _rows(seen, right, bad, judged)


def _eps(seen: Slots, right: Slots, same: Bool, judged: Bool, call: Call) -> Iterator[Guess]:
    """The weights divided by their sum + eps, where eps is the same for all tokens: w = w' (1 + eps / sum)."""
    sums = weight_sums(call)
    if sums is None or not same.any():
        return
    a, b = _sorted(seen), _sorted(right)
    fit = fit_factor(b.weights - a.weights, a.weights / sums, np.where(same, np.abs(b.weights), 0.0), same, sized=False)
    if fit is None or not max(CERTAIN * fit.error, LEAST_EPS) < fit.factor < MOST_EPS:
        return
    routed = (right.ids < call.case.num_experts) & judged[:, None]
    scaled = np.where(routed, sums / (sums + fit.factor), 1.0) * right.weights
    words, complexity = eps_words(fit.factor, fit.error)
    yield Guess("renorm_eps", words, Slots(scaled, right.ids), judged, complexity=complexity)


def _factor(value: float) -> str:
    """A factor with three digits of what differs from 1: `1.0001`, `0.5`."""
    digits = 2 - int(np.floor(np.log10(max(abs(value - 1.0), 1e-8))))
    return f"{value:.{min(max(digits, 3), 9)}f}".rstrip("0").rstrip(".")


def _rows(seen: Slots, right: Slots, bad: Bool, judged: Bool) -> Iterator[Guess]:
    rows = np.flatnonzero(bad)
    weights, ids = right.weights.copy(), right.ids.copy()
    if not np.any(seen.weights[rows]):
        weights[rows], ids[rows] = 0.0, seen.ids[rows]
        words = f"{names('token', rows)} {'has' if len(rows) == 1 else 'have'} weights that are all zero"
        yield Guess("1_token_zero", words, Slots(weights, ids), judged, complexity=2)
        return
    a, b = _sorted(seen), _sorted(right)
    near = [(b.ids == a.ids[r]).all(axis=1) & np.isclose(b.weights, a.weights[r], rtol=1e-4).all(axis=1) for r in rows]
    if all(match.any() for match in near):
        source = np.array([int(np.argmax(match)) for match in near])
        weights[rows], ids[rows] = right.weights[source], right.ids[source]
        swapped = dict(zip(rows.tolist(), source.tolist(), strict=True))
        pairs = all(swapped.get(other) == one for one, other in swapped.items())
        text = "are exchanged with each other" if pairs else f"hold those of token {source[0]} and so on"
        name = "2_tokens_swapped" if pairs else "wrong_rows"
        yield Guess(name, f"{names('token', rows)} {text}", Slots(weights, ids), judged, complexity=2)


def _z_of(seen: Slots, expected: Slots, call: Call, numerics: Numerics | None) -> Float64:
    """[T, slots]: |w - expected| over a quarter of its bound, slots ordered by id; LARGEST_Z where the id differs."""
    contract = (numerics or Numerics()).resolve(call.case.dtype)
    a, b = _sorted(seen), _sorted(expected)
    allowed = weight_bound(
        b.weights,
        to_float64(call.inputs["router_logits"]),
        top_k=call.case.spec.routing.top_k,
        dtype=contract.topk_weights,
        scores=contract.scores,
    )
    with np.errstate(invalid="ignore", over="ignore"):
        z = BOUND * np.abs(a.weights - b.weights) / allowed
    z = np.where(np.isnan(a.weights) & np.isnan(b.weights), 0.0, z)
    z = np.nan_to_num(np.minimum(z, LARGEST_Z), nan=LARGEST_Z)
    return np.where(a.ids == b.ids, z, LARGEST_Z)


def _score(z: Float64, judged: Bool, seen: Slots, expected: Slots) -> Score:
    unlike = (_sorted(seen).ids != _sorted(expected).ids)[judged]
    chosen = z[judged]
    same = chosen[~unlike]
    return Score(
        cost=float(np.square(chosen).sum()),
        rms_z=float(np.sqrt(np.square(same).mean())) if same.size else 0.0,
        max_z=float(np.max(same, initial=0.0)),
        unlike=int(unlike.sum()),
        elements=int(chosen.size),
    )


def _sorted(slots: Slots) -> Slots:
    """Each token's slots in ascending order of id, equal ids by weight."""
    order = np.lexsort((slots.weights, slots.ids), axis=1)
    return Slots(np.take_along_axis(slots.weights, order, axis=1), np.take_along_axis(slots.ids, order, axis=1))


def _ambiguous(call: Call, numerics: Numerics | None) -> npt.NDArray[np.bool_]:
    return ambiguous_rows(choice_of(call.case, call.inputs, numerics), call.case.spec.routing)


def _location(z: Float64, judged: Bool, seen: Slots, right: Slots) -> str:
    """Which tokens are wrong, and whether in their ids or only in their weights."""
    a, b = _sorted(seen), _sorted(right)
    other = judged & (a.ids != b.ids).any(axis=1)
    wrong = judged & (z > BOUND).any(axis=1)
    text = f"{int(wrong.sum())} of {int(judged.sum())} tokens are wrong"
    if 0 < wrong.sum() <= SHOWN:
        text = f"Wrong: {names('token', np.flatnonzero(wrong))}"
    chosen = f"{int(other.sum())} with other experts" if other.any() else "all with the right experts and other weights"
    experts = _experts(a.ids, b.ids, other)
    return f"{text}, {chosen}{experts}."


def _experts(seen: Ids, right: Ids, other: Bool) -> str:
    """Experts that every token with another choice lacks, or has too many."""
    pairs: list[tuple[set[Any], set[Any]]] = [
        (set(r.tolist()) - set(s.tolist()), set(s.tolist()) - set(r.tolist()))
        for s, r in zip(seen[other], right[other], strict=True)
    ]
    if not pairs:
        return ""
    lacking, surplus = set.intersection(*(p[0] for p in pairs)), set.intersection(*(p[1] for p in pairs))
    text = f"; all of these lack {names('expert', np.array(sorted(lacking)))}" if lacking else ""
    return text + (f"; all of these have {names('expert', np.array(sorted(surplus)))} instead" if surplus else "")
