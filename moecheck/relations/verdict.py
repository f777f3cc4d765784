"""Judges one relation: whether what its calls gave is equal, bitwise or within the roundings of both sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from moecheck import metrics
from moecheck.bounds import value_bound, weight_bound
from moecheck.cases import Case
from moecheck.checks.contract import judge_contract
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.judge import VALUE_OPS
from moecheck.checks.legal_sets import ambiguous_rows, choice_of
from moecheck.checks.place import shares
from moecheck.checks.routing import judged_rows
from moecheck.formats import Float64
from moecheck.numerics import FLOOR, Numerics
from moecheck.ops import LAYERS
from moecheck.oracle import Oracle, call_reference, reference_modules
from moecheck.relations.relation import Call, Calls, Outputs, Pair, Relation, Subject, Trial
from moecheck.relations.rows import rows_of

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Whose relation is judged and against what: the subject, the oracle, and the contract that gives sigma."""

    subject: Subject
    oracle: Oracle
    numerics: Numerics | None


def judge_relation(
    relation: Relation, trial: Trial, base: Outputs, further: tuple[Outputs, ...], setting: Setting
) -> Judgement:
    """PASS, or what differs: PROVEN_WRONG where bits had to be equal or NaN appears, FAIL beyond both sides' rounding.

    base: the kernel's outputs on the case itself. further: those of the trial's calls, in order.
    A relation that verifies a capability notes in `numbers` whether the capability was observed.
    """
    case = setting.subject.case
    for call, outputs in zip(trial.calls, further, strict=True):
        contract = judge_contract(call.case, call.inputs, outputs)
        if contract.verdict is not Verdict.PASS:
            return _judgement(relation, contract.verdict, contract.message)
    calls = (Call(case=case, inputs=setting.oracle.inputs(case)), *trial.calls)
    raw: tuple[Outputs, ...] = (base, *further)
    decoded = tuple(rows_of(call.case, outputs) for call, outputs in zip(calls, raw, strict=True))
    seen = Calls(
        raw=raw,
        outputs=decoded,
        allowed=cache(lambda i: _allowed(calls[i], decoded[i], setting)),
    )
    pairs = trial.pairs(seen)
    exact = relation.exact(setting.subject)
    differing = [pair for pair in pairs if metrics.abs_err(pair.got, pair.wanted).any()]
    broken = None
    for pair in differing:
        allowed = np.zeros_like(pair.wanted) if exact else pair.allowed()
        beyond = ~(metrics.abs_err(pair.got, pair.wanted) <= allowed)
        if beyond.any():
            broken = _broken(relation, pair, allowed, beyond, exact=exact)
            break
    numbers = {}
    if relation.capability is not None:
        observed = broken is None and not (differing and relation.bitwise)
        numbers = {f"{relation.capability}_observed": float(observed)}
    return replace(broken or _judgement(relation, Verdict.PASS, ""), numbers=numbers)


def _broken(relation: Relation, pair: Pair, allowed: Float64, beyond: Bool, *, exact: bool) -> Judgement:
    error = metrics.abs_err(pair.got, pair.wanted)
    with np.errstate(divide="ignore", invalid="ignore"):
        row, column = np.unravel_index(int(np.argmax(np.where(beyond, error / allowed, -1.0))), error.shape)
    got, wanted, bound = pair.got[row, column], pair.wanted[row, column], allowed[row, column]
    explained = f" (rounding explains ±{bound:.2g})" if bound > 0 else " in every bit" if exact else ""
    proven = exact or (np.isfinite(pair.wanted) & ~np.isfinite(pair.got))[beyond].any()
    message = (
        f"row {row}, column {column}: {got:.8g} where it should equal {wanted:.8g}{explained}. "
        f"Differing: {shares(beyond, 'row')}."
    )
    verdict = Verdict.PROVEN_WRONG if proven else Verdict.FAIL
    return _judgement(relation, verdict, message, where={"row": int(row), "column": int(column)}, exact=exact)


def _judgement(
    relation: Relation,
    verdict: Verdict,
    message: str,
    *,
    where: dict[str, int] | None = None,
    exact: bool = False,
) -> Judgement:
    if verdict is not Verdict.PASS:
        declared = f"It declares {relation.capability}=True, by which " if relation.bitwise and exact else ""
        law = declared + relation.says
        message = f"{law[0].upper()}{law[1:]}. {message[0].upper()}{message[1:]}"
    return Judgement(check=relation.name, verdict=verdict, message=message, where=where or {})


def _allowed(call: Call, rows: Float64, setting: Setting) -> Float64:
    """How far an honest kernel may be from the mathematics in one call: shape of `rows`, infinite where undecided."""
    case = call.case
    if case.op in VALUE_OPS:
        bound = value_bound(_sigma(call, setting))
        if case.op in LAYERS:
            choice = choice_of(case, call.inputs, setting.numerics)
            bound = np.where(ambiguous_rows(choice, case.spec.routing)[:, None], np.inf, bound)
        return bound
    if case.op == "topk_routing":
        return _weights_allowed(call, rows, setting.numerics)
    # Copies and integers have no rounding; the order within an expert's block is the kernel's own choice.
    return np.full(rows.shape, np.inf if case.op == "align_block_size" else 0.0)


def _sigma(call: Call, setting: Setting) -> Float64:
    case: Case = call.case
    if case == setting.subject.case and call.inputs is setting.oracle.inputs(case):
        return setting.oracle.values(case, setting.numerics).sigma
    module, contract = reference_modules()[case.op], (setting.numerics or FLOOR).resolve(case.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        estimate = call_reference(module.estimate, case, call.inputs, numerics=contract, dtype=case.dtype)
    return np.asarray(estimate.sigma)


def _weights_allowed(call: Call, rows: Float64, numerics: Numerics | None) -> Float64:
    case, routing, module = call.case, call.case.spec.routing, reference_modules()["topk_routing"]
    contract = (numerics or Numerics()).resolve(case.dtype)
    logits = module.logits_of(
        **{n: call.inputs[n] for n in ("router_logits", "correction_bias") if n in call.inputs}, spec=routing
    )
    bound = weight_bound(rows, logits, top_k=routing.top_k, dtype=contract.topk_weights, scores=contract.scores)
    unsure = ambiguous_rows(choice_of(case, call.inputs, numerics), routing) | ~judged_rows(call.inputs)
    return np.where(unsure[:, None], np.inf, bound)
