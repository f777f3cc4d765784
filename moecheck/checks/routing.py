"""The check of routing: is each token's set of experts legal, and do the weights belong to it?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moecheck import metrics
from moecheck.bounds import SURELY, weight_bound
from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.legal_sets import ambiguous_rows, choice_of, legal_rows
from moecheck.checks.routing_weights import declaration_that_explains, judge_weight_statistics, keeps_contract
from moecheck.checks.ties import judge_ties
from moecheck.formats import Float64, to_float64
from moecheck.kernel import TieRule
from moecheck.numerics import Numerics
from moecheck.oracle import call_reference, reference_modules

Bool = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.integer[Any]]


def judge_routing(
    case: Case,
    inputs: dict[str, Any],
    weights: Float64,
    ids: Ids,
    *,
    numerics: Numerics | None,
    tol: float,
    tie: TieRule | None = None,
    declared: bool = True,
) -> list[Judgement]:
    """Judge ids as sets and weights against those recomputed in float64 from the kernel's own ids.

    tie: the rule that the kernel declares for equal scores. declared: whether it declares `numerics` itself; if not,
    a case that it rounds otherwise is judged as undeclared.
    """
    structure = _structure(case, ids)
    if structure is not None:
        return [structure]
    if numerics is not None and not (declared or keeps_contract(case, inputs, weights, ids, numerics)):
        numerics = None
    routing, choice = case.spec.routing, choice_of(case, inputs, numerics)
    routed = ids[:, : routing.top_k]
    legal = legal_rows(choice, routed, routing)
    judged = judged_rows(inputs)
    wrong = judged & ~legal
    numbers = {"ambiguous_share": float(ambiguous_rows(choice, routing).mean()) if len(ids) else 0.0}
    if wrong.any():
        return [_illegal(case, inputs, routed, wrong, numbers)]
    if not judged.any():
        message = "No row of logits has a defined choice, so only the range of the ids could be checked."
        return [Judgement(check="routing", verdict=Verdict.INCONCLUSIVE, message=message, numbers=numbers)]
    verdict = Judgement(check="routing", verdict=Verdict.PASS, numbers=numbers)
    ties = judge_ties(case, inputs, choice, routed, judged) if tie else None
    of_weights = _judge_weights(case, inputs, weights, ids, judged, numerics, tol)
    statistics = judge_weight_statistics(case, inputs, weights, ids, numerics)
    return [verdict, *(found for found in (ties, of_weights, statistics) if found is not None)]


def judged_rows(inputs: dict[str, Any]) -> Bool:
    """[T]: rows without NaN and +Inf and with a finite logit; in the others only distinct ids in range are required."""
    return np.asarray(np.isfinite(to_float64(inputs["router_logits"]).max(axis=1)))


def _structure(case: Case, ids: Ids) -> Judgement | None:
    """Ids in range and distinct, fused shared slots in their place; None when all is well."""
    E, top_k = case.num_experts, case.spec.routing.top_k
    routed, shared = ids[:, :top_k], ids[:, top_k:]
    out_of_range = (routed < 0) | (routed >= E)
    if out_of_range.any():
        token, slot = (int(i) for i in np.argwhere(out_of_range)[0])
        return _wrong(f"token {token}, slot {slot}: id {ids[token, slot]} is out of range 0 to {E - 1}", token, slot)
    ordered = np.sort(routed, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if twice.any():
        token = int(np.flatnonzero(twice)[0])
        return _wrong(f"token {token}: ids {routed[token].tolist()} are not distinct", token, 0)
    expected = E + np.arange(case.spec.routing.num_fused_shared_experts)
    if (np.sort(shared, axis=1) != expected).any():
        token = int(np.flatnonzero((np.sort(shared, axis=1) != expected).any(axis=1))[0])
        return _wrong(
            f"token {token}: the fused shared slots hold {shared[token].tolist()} instead of {expected.tolist()}",
            token,
            top_k,
        )
    return None


def _wrong(message: str, token: int, slot: int) -> Judgement:
    return Judgement(
        check="routing", verdict=Verdict.PROVEN_WRONG, message=message + ".", where={"token": token, "slot": slot}
    )


def _illegal(case: Case, inputs: dict[str, Any], ids: Ids, wrong: Bool, numbers: dict[str, float]) -> Judgement:
    module = reference_modules()["topk_routing"]
    _, expected = call_reference(module.topk_routing, case, inputs)
    token = int(np.flatnonzero(wrong)[0])
    right = sorted(expected[token, : case.spec.routing.top_k].tolist())
    return Judgement(
        check="routing",
        verdict=Verdict.PROVEN_WRONG,
        message=(
            f"token {token}: chose experts {sorted(ids[token].tolist())}, expected {right}; rounding of the scores "
            f"does not explain it. {int(wrong.sum())} of {len(wrong)} tokens have an illegal choice."
        ),
        numbers={**numbers, "illegal_share": float(wrong.mean())},
        where={"token": token},
    )


def _judge_weights(
    case: Case, inputs: dict[str, Any], weights: Float64, ids: Ids, judged: Bool, numerics: Numerics | None, tol: float
) -> Judgement:
    module = reference_modules()["topk_routing"]
    expected = call_reference(module.weights_of_ids, case, inputs, topk_ids=ids)
    judged = judged & np.isfinite(expected).all(axis=1)
    contract = (numerics or Numerics()).resolve(case.dtype)
    logits = module.logits_of(
        **{n: inputs[n] for n in ("router_logits", "correction_bias") if n in inputs}, spec=case.spec.routing
    )
    allowed = weight_bound(
        expected, logits, top_k=case.spec.routing.top_k, dtype=contract.topk_weights, scores=contract.scores
    )
    error = metrics.abs_err(weights, expected)
    beyond = judged[:, None] & ~(error <= allowed)
    numbers = {
        **metrics.differences(weights[judged], expected[judged], tol),
        "rms_ref": metrics.rms(expected),
    }
    visible = judged[:, None] & (expected > 0.0)
    if visible.any():
        numbers["smallest_factor"] = SURELY * float(np.min(allowed[visible] / expected[visible]))
    if not beyond.any():
        return Judgement(check="weights", verdict=Verdict.PASS, numbers=numbers)
    token, slot = np.unravel_index(int(np.argmax(np.where(beyond, error / allowed, -1.0))), error.shape)
    low = declaration_that_explains(case, inputs, weights, ids) if numerics is None else None
    advice = f" They have fewer bits than fp32; if that is meant, declare {low}." if low else ""
    return Judgement(
        check="weights",
        verdict=Verdict.FAIL if np.isfinite(weights[token, slot]) else Verdict.PROVEN_WRONG,
        message=(
            f"token {token}, slot {slot}, expert {ids[token, slot]}: weight {weights[token, slot]:.8g}, expected "
            f"{expected[token, slot]:.8g} (rounding explains ±{allowed[token, slot]:.1g}); "
            f"{beyond.mean():.1%} of the weights are wrong.{advice}"
        ),
        numbers=numbers,
        where={"token": int(token), "slot": int(slot)},
    )
