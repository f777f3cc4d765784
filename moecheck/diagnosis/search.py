"""Tries known bugs and fitted numbers on a wrong output, and takes the likeliest that explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moecheck.cases import Case
from moecheck.checks.layer import layer_values
from moecheck.checks.legal_sets import ambiguous_rows, choice_of
from moecheck.formats import AnyArray, to_float64
from moecheck.mutants import mutants_for
from moecheck.mutants.call import Prediction, call_of, decoded, predict, value
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle

from .evidence import LEAST_GAIN, Bool, Evidence, Score, score, z_of
from .families import families
from .hypothesis import ANYTHING, PRICE, Hypothesis, slope_bias
from .location import Location, locate
from .parts import experts_of, parts_of
from .slight import slight_hypotheses

VALUE_OPS = ("unpermute", "grouped_gemm", "act_and_mul", "fused_experts", "moe_layer")
ROWS = {"grouped_gemm": "row", "act_and_mul": "row"}
EQUAL = 25.0  # hypotheses whose sums of z^2 differ by less cannot be told apart
SIMPLER = 100.0  # what a fitted number gains by chance, errors of one row being correlated
CLOSEST = 0.1  # a hypothesis that leaves at most this share of the error is worth a word
LOOKED_AT = 6  # hypotheses that get a sigma of their own
LARGEST = 1 << 29  # multiplications of one reference call, above which only fitted hypotheses are tried
MOST_AMBIGUOUS = 0.5  # share of tokens with several right outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What a wrong output looks like.

    sentence: for people. hypothesis: the name of the bug that explains it, None where none does. issue: where that bug
    happened, OWNER/REPO#NUMBER. rms_z, rms_z_reference: of the output against the hypothesis (or the closest one) and
    against the right values, over finite elements. location: a sentence. also: names of bugs that are equal here.
    """

    sentence: str
    hypothesis: str | None
    issue: str | None
    rms_z: float
    rms_z_reference: float
    location: str
    also: tuple[str, ...] = ()

    def words(self) -> str:
        """The sentence and the location."""
        return f"{self.sentence} {self.location}".strip()


def diagnose(case: Case, outputs: tuple[AnyArray, ...], oracle: Oracle, numerics: Numerics | None) -> Diagnosis | None:
    """What the output of a failing case looks like; None where the right reference explains it, or nothing is known.

    numerics: the kernel's contract, None when unknown.
    """
    if case.num_tokens == 0:
        return None
    if case.op == "topk_routing":
        from .routing import diagnose_routing  # it needs Diagnosis

        return diagnose_routing(case, outputs, oracle, numerics)
    if case.op not in VALUE_OPS:
        return None
    out = to_float64(outputs[0])
    values, _ = (
        layer_values(case, out, oracle, numerics) if case.op == "moe_layer" else (oracle.values(case, numerics), None)
    )
    if out.shape != values.true.shape:
        return None
    evidence = Evidence(
        out=out,
        reference=Prediction(values.true, values.sigma),
        rounded=values.rounded,
        judged=np.isfinite(values.true) & _unambiguous(case, oracle, numerics)[:, None],
    )
    with np.errstate(all="ignore"):  # what a bug makes of large values may overflow, and counts as it is
        return _Search(case, oracle, numerics, evidence).diagnosis()


def best_case_for_diagnosis(failing: Sequence[Case]) -> Case:
    """The failing case that says most: plain, without ties, maps and padding, with many tokens and columns."""

    def rank(case: Case) -> tuple[bool, bool, bool, bool, int]:
        return (
            case.num_tokens >= 16 and case.hidden_size >= 32,
            _work(case) <= LARGEST,
            case.stratum == "random",
            case.load in ("random", "gapped", "negative") and case.num_local_experts is None,
            min(case.num_tokens, 64) * min(case.hidden_size, 256) * min(case.num_experts, 16),
        )

    return max(failing, key=rank)


class _Search:
    """The hypotheses of one output and their scores."""

    def __init__(self, case: Case, oracle: Oracle, numerics: Numerics | None, evidence: Evidence) -> None:
        self.case, self.oracle, self.numerics, self.evidence = case, oracle, numerics, evidence
        self.call = decoded(call_of(case, oracle)) if _work(case) <= LARGEST else call_of(case, oracle)
        self.row = ROWS.get(case.op, "token")
        self.reference = score(evidence, evidence.reference)

    def diagnosis(self) -> Diagnosis | None:
        if not self.evidence.judged.any() or self.evidence.judged.mean() < 1.0 - MOST_AMBIGUOUS:
            return None
        ranked = self._ranked(self.evidence)
        best = self._best(ranked, self.evidence)
        if best is not None:
            return self._named(best, ranked)
        finite = np.isfinite(self.evidence.out) | ~np.isfinite(self.evidence.reference.value)
        if not finite.all() and (finite & self.evidence.judged).any():
            return self._beside_lost(finite)
        if self.reference.explains:
            return None
        return self._unknown(ranked)

    def _ranked(self, evidence: Evidence) -> list[tuple[Hypothesis, Score]]:
        """All hypotheses, most likely first."""
        large = _work(self.case) > LARGEST
        parts = None if large else parts_of(self.call)
        bias = slope_bias(self.numerics, self.case.dtype)
        found = [*self._catalogue(evidence)]
        found += slight_hypotheses(evidence, self.call, parts, self.row, bias=bias, numerics=self.numerics, large=large)
        found += families(evidence, parts, experts_of(self.call), self.row, bias)
        scored = [(one, score(evidence, one.prediction)) for one in found]
        return sorted(scored, key=lambda pair: pair[1].cost)

    def _catalogue(self, evidence: Evidence) -> list[Hypothesis]:
        """The mutants, screened with the reference's sigma; the most likely ones with their own."""
        if _work(self.case) > LARGEST:
            return []
        right, sigma = evidence.reference
        screened = []
        for mutant in mutants_for(self.case):
            if mutant.fitted:
                continue
            mutation = mutant.change(self.call)
            prediction = Prediction(value(mutation), sigma)
            if prediction.value.shape == right.shape and not np.array_equal(prediction.value, right, equal_nan=True):
                screened.append((score(evidence, prediction).cost, mutant, mutation))
        screened.sort(key=lambda entry: entry[0])
        return [
            Hypothesis(
                name=mutant.name,
                words=mutant.words,
                prediction=predict(mutation, self.numerics, sigma, self.case.dtype),
                complexity=0,
                sources=mutant.sources,
                rough=mutant.rough,
            )
            for _, mutant, mutation in screened[:LOOKED_AT]
        ]

    def _best(self, ranked: list[tuple[Hypothesis, Score]], evidence: Evidence) -> tuple[Hypothesis, Score] | None:
        """The simplest of the most likely hypotheses, if it explains the output far better than the reference."""
        reference = score(evidence, evidence.reference)
        explaining = [(one, s) for one, s in ranked if one.accepted(s, _against(one, evidence, reference))]
        few = [pair for pair in explaining if pair[0].complexity < ANYTHING]
        if not few:  # numbers for every slot must do better by far than anything simple, whether it explains or not
            simple = min((s.cost for one, s in ranked if one.complexity < ANYTHING), default=reference.cost)
            few = [(one, s) for one, s in explaining if simple - s.cost > LEAST_GAIN + PRICE * one.parameters]
        if not few:
            return None
        compared = self._on_one_scale(few)
        least = min(s.cost for _, s in compared)
        return min(
            (pair for pair in compared if pair[1].cost <= least + (SIMPLER if pair[0].complexity == 0 else EQUAL)),
            key=lambda pair: (pair[0].complexity, pair[1].cost),
        )

    def _on_one_scale(self, explaining: list[tuple[Hypothesis, Score]]) -> list[tuple[Hypothesis, Score]]:
        """The scores with costs by the sigma of the simplest one: only differences of values shall count."""
        simplest, _ = min(explaining, key=lambda pair: (pair[0].complexity, pair[1].cost))
        judged, scale = self.evidence.judged, simplest.prediction.sigma
        costs = [
            float(np.square(z_of(self.evidence.out, Prediction(one.prediction.value, scale))[judged]).sum())
            for one, _ in explaining
        ]
        return [(one, replace(s, cost=cost)) for (one, s), cost in zip(explaining, costs, strict=True)]

    def _named(self, best: tuple[Hypothesis, Score], ranked: list[tuple[Hypothesis, Score]]) -> Diagnosis:
        one, s = best
        accepted = [
            (other, its)
            for other, its in ranked
            if other is not one and other.accepted(its, _against(other, self.evidence, self.reference))
        ]
        rivals = self._on_one_scale([best, *accepted])
        least = rivals[0][1].cost
        equal = [o for o, its in rivals[1:] if o.complexity <= one.complexity and abs(its.cost - least) <= EQUAL]
        words = one.words + (f" ({one.sources[0]})" if one.sources else "")
        if equal:
            words += f", or {'; or '.join(other.words for other in equal[:2])}: equal on this case"
        if not s.explains:
            words += ", up to bits that cannot be foreseen"
        sentence = f"looks like: {words}; residual rms z {_z(s)} against {_z(self.reference)} for the reference."
        return self._made(sentence, one, s, tuple(other.name for other in equal))

    def _beside_lost(self, finite: Bool) -> Diagnosis:
        """Some elements are not finite, and the others are right or have a bug of their own."""
        rest = replace(self.evidence, judged=self.evidence.judged & finite)
        reference = score(rest, rest.reference)
        tokens = int((~finite).any(axis=1).sum())
        lost = f"{tokens} of {len(finite)} {self.row}s hold NaN or Inf"
        if reference.explains:
            return self._made(f"looks like: {lost}; the other elements are right.", None, reference, (), "nan_rows")
        best = self._best(self._ranked(rest), rest)
        if best is None:
            return self._made(f"{lost}, and no known bug explains the others.", None, reference, ())
        one, s = best
        text = f"{lost}; the others look like: {one.words}" + (f" ({one.sources[0]})" if one.sources else "")
        sentence = f"{text}; residual rms z {_z(s)} against {_z(reference)} for the reference."
        return self._made(sentence, one, s, ("nan_rows",))

    def _unknown(self, ranked: list[tuple[Hypothesis, Score]]) -> Diagnosis:
        text = "no known bug explains it"
        if _work(self.case) > LARGEST:
            text = "this case is too large to try the known bugs on"
        if ranked and ranked[0][1].cost <= CLOSEST * self.reference.cost:
            one, s = ranked[0]
            removed = 1.0 - max(s.cost, 0.0) / self.reference.cost
            text += f"; closest: {one.words}, which removes {removed:.1%} of the error"
            text += f" (residual rms z {_z(s)} against {_z(self.reference)})"
            return self._made(text + ".", None, s, (one.name,))
        return self._made(f"{text} (rms z {_z(self.reference)}).", None, self.reference, ())

    def _made(
        self, sentence: str, one: Hypothesis | None, s: Score, also: tuple[str, ...], name: str | None = None
    ) -> Diagnosis:
        where = locate(self.evidence, experts_of(self.call), self.row)
        if one is not None and one.everywhere:
            where = Location(row=self.row)
        nowhere = one is not None and one.slight and not one.everywhere and not (where.rows or where.columns)
        return Diagnosis(
            sentence=sentence,
            hypothesis=one.name if one else name,
            issue=one.sources[0] if one and one.sources else None,
            rms_z=s.rms_z,
            rms_z_reference=self.reference.rms_z,
            location="" if nowhere else where.words(),  # the sentence says where, and no element stands out
            also=also,
        )


def _against(one: Hypothesis, evidence: Evidence, reference: Score) -> Score:
    """What the reference scores by the larger sigma of a hypothesis: that alone must not make it the better one."""
    if one.complexity > 0:
        return reference
    sigma = np.fmax(evidence.reference.sigma, one.prediction.sigma)
    return score(evidence, Prediction(evidence.reference.value, sigma))


def _unambiguous(case: Case, oracle: Oracle, numerics: Numerics | None) -> Bool:
    """[rows]: tokens whose choice of experts is certain; all of them where the choice is an input."""
    if case.op != "moe_layer":
        return np.ones(len(oracle.values(case, numerics).true), dtype=np.bool_)
    choice = choice_of(case, oracle.inputs(case), numerics)
    return ~ambiguous_rows(choice, case.spec.routing)


def _work(case: Case) -> int:
    """Multiplications of one reference call, roughly, and those of decoding its weights."""
    if case.op in ("unpermute", "act_and_mul"):
        return case.num_tokens * case.spec.routing.top_k * case.hidden_size
    weights = 3 * case.hidden_size * case.intermediate_size
    used = min(case.num_tokens * case.spec.routing.top_k, case.num_experts)
    return weights * (case.num_tokens * case.spec.routing.top_k + 8 * used)


def _z(s: Score) -> str:
    return f"{s.rms_z:.3g}"
