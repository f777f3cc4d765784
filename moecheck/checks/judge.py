"""Judges what a kernel returned on one case: all checks of the case's op together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moecheck import metrics
from moecheck.accumulators import ACCUMULATORS
from moecheck.bounds import NEAR_BIAS, SMOOTH_BIAS, truncation_bias
from moecheck.cases import Case
from moecheck.checks.contract import judge_contract, output_sizes
from moecheck.checks.finding import FAILURES, Judgement, Verdict
from moecheck.checks.layer import layer_values
from moecheck.checks.routing import judge_routing
from moecheck.checks.sampled import SAMPLED_TOKEN, judge_all_tokens, with_tokens
from moecheck.checks.statistics import judge_near_slope, judge_statistics, reproduces
from moecheck.checks.structure import judge_structure
from moecheck.checks.values import is_vacuous, judge_values
from moecheck.formats import FORMATS, AnyArray, Float64, to_float64, ulp
from moecheck.kernel import TieRule
from moecheck.numerics import FLOOR, Numerics
from moecheck.ops import LAYERS
from moecheck.oracle import Oracle, Values
from moecheck.sampled_inputs import sampled_rows

SOME_ROWS = frozenset({"expert_outputs", "batched_experts"})  # ops with rows of the output that may hold anything
VALUE_OPS = frozenset({"unpermute", "grouped_gemm", "act_and_mul", "fused_experts", *LAYERS}) | SOME_ROWS
STRUCTURE_OPS = frozenset({"align_block_size", "expert_counts", "permute", "problem_sizes", "shuffle_rows"})
ROW_NAMES = {
    "grouped_gemm": "row",
    "act_and_mul": "row",
    "expert_outputs": "slot with an expert",
    "batched_experts": "row with a token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the user set: tol of mismatch_ratio and vacuity, max_mismatch as a hard cap on the ratio (None: no cap)."""

    tol: float = 1e-2
    max_mismatch: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """All judgements of one run, and what the report draws: the output and the values it was compared with."""

    judgements: tuple[Judgement, ...]
    out: AnyArray | None = None
    values: Values | None = None


@np.errstate(all="ignore")  # extreme values are judged, they must not warn in someone's tests
def judge(
    case: Case,
    outputs: tuple[AnyArray, ...],
    oracle: Oracle,
    limits: Limits,
    numerics: Numerics | None,
    *,
    tie: TieRule | None = None,
    declared: bool = True,
) -> Judged:
    """Judge a kernel's outputs (NumPy arrays) against the case's reference under the kernel's contract.

    declared: whether the kernel says itself that `numerics` is its contract. One that was found by looking at other
    cases is not held against a kernel that rounds elsewhere on this one. tie: its declared rule for equal scores.
    """
    inputs = oracle.inputs(case)
    contract = judge_contract(case, inputs, outputs)
    if contract.verdict is not Verdict.PASS:
        return Judged(judgements=(contract,))
    if case.sampled:
        everywhere = judge_all_tokens(case, outputs[0])
        judged = _values(case, outputs[0][sampled_rows(case)], oracle, limits, numerics, declared=declared)
        judgements = tuple(with_tokens(case, judgement) for judgement in judged.judgements)
        return replace(judged, judgements=(contract, everywhere, *judgements))
    if case.op in VALUE_OPS:
        judged = _values(case, outputs[0], oracle, limits, numerics, declared=declared)
    elif case.op in STRUCTURE_OPS:
        judged = Judged(judgements=(_structure(case, inputs, outputs, oracle),))
    else:
        judged = Judged(judgements=tuple(_routing(case, inputs, outputs, limits, numerics, tie, declared)))
    return Judged(judgements=(contract, *judged.judgements), out=judged.out, values=judged.values)


def _values(
    case: Case, out: AnyArray, oracle: Oracle, limits: Limits, numerics: Numerics | None, *, declared: bool
) -> Judged:
    if case.op in SOME_ROWS:
        out = _held(case, out, oracle)
    decoded = to_float64(out)
    values, extra = _expected(case, decoded, oracle, numerics)
    near = None
    if numerics is not None and not declared and not reproduces(decoded, values):
        near = judge_near_slope(
            decoded, values, bias=NEAR_BIAS[case.dtype] * (2.0 if case.stratum == "positive" else 1.0)
        )
        numerics = None
        values, extra = _expected(case, decoded, oracle, None)
    # A dynamic quantiser does not represent the integers.
    requantised = numerics is not None and numerics.requantises
    exact = case.stratum == "integer" and case.op in ("fused_experts", *SOME_ROWS, "grouped_gemm") and not requantised
    judgement = judge_values(
        decoded,
        values,
        tol=limits.tol,
        max_mismatch=limits.max_mismatch,
        exact=exact,
        row=_row_name(case),
        largest=FORMATS[case.dtype].max_value,
    )
    if judgement.verdict is Verdict.FAIL and not case.sampled:  # of a large layer that bound takes minutes
        judgement = _proven(judgement, case, decoded, values, oracle, numerics)
    if judgement.verdict is Verdict.PASS and is_vacuous(values, tol=limits.tol, exact=exact):
        seen = requantised and _zeros_are_seen(case, values, oracle, limits, numerics, declared=declared)
        judgement = judgement if seen else _vacuous(f"an all-zeros output passes at tol={limits.tol:g}")
    statistics = None if exact else _statistics(case, decoded, values, oracle, numerics, declared=declared)
    more = [found for found in (statistics, near, extra) if found is not None]
    return Judged(judgements=(judgement, *more), out=out, values=values)


def _zeros_are_seen(
    case: Case, values: Values, oracle: Oracle, limits: Limits, numerics: Numerics | None, *, declared: bool
) -> bool:
    """Whether all zeros fail by their statistics although each is within what quantising to few bits explains."""
    zeros, judged = np.zeros_like(values.true), np.isfinite(values.true)
    if not (judged & metrics.mismatches(zeros, values.true, limits.tol)).any():
        return False
    found = _statistics(case, zeros, values, oracle, numerics, declared=declared)
    return found is not None and found.verdict in FAILURES


def _proven(
    judgement: Judgement, case: Case, out: Float64, values: Values, oracle: Oracle, numerics: Numerics | None
) -> Judgement:
    """The judgement, PROVEN_WRONG where an element lies beyond what any rounding could do."""
    bound = oracle.hard_bound(case, numerics)
    if bound is None:
        return judgement
    with np.errstate(invalid="ignore"):
        beyond = np.isfinite(values.true) & (np.abs(out - values.true) > bound)
    if not beyond.any():
        return judgement
    message = (
        f"{judgement.message} No kernel that rounds only where this contract does, and sums in fp32, could be so far "
        f"off in {beyond.mean():.2%} of the elements."
    )
    numbers = {**judgement.numbers, "beyond_hard_bound": float(beyond.mean())}
    return replace(judgement, verdict=Verdict.PROVEN_WRONG, message=message, numbers=numbers)


def _expected(case: Case, out: Float64, oracle: Oracle, numerics: Numerics | None) -> tuple[Values, Judgement | None]:
    if case.op in LAYERS:
        return layer_values(case, out, oracle, numerics)
    values = oracle.values(case, numerics)
    return (values.rows(held_rows(oracle.inputs(case))) if case.op in SOME_ROWS else values), None


def _held(case: Case, out: AnyArray, oracle: Oracle) -> AnyArray:
    """The rows of an output [T, k, H] or [E, C, H] that are anybody's: the others may hold anything."""
    return np.asarray(out.reshape(-1, out.shape[-1])[held_rows(oracle.inputs(case))])


def held_rows(inputs: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """[T k]: whether the slot's expert is on this rank; [E C]: whether the row is one of its expert's count."""
    if "expert_counts" in inputs:
        place = np.arange(inputs["hidden_states"].shape[1])
        return np.asarray(place < inputs["expert_counts"][:, None]).reshape(-1)
    ids, expert_map = inputs["topk_ids"].reshape(-1), inputs.get("expert_map")
    return np.asarray((ids >= 0) if expert_map is None else (ids >= 0) & (expert_map[np.maximum(ids, 0)] >= 0))


def _statistics(
    case: Case, out: Float64, values: Values, oracle: Oracle, numerics: Numerics | None, *, declared: bool
) -> Judgement | None:
    stored_as = (numerics or FLOOR).resolve(case.dtype).out
    terms = case.intermediate_size if case.op == "act_and_mul" else max(case.hidden_size, case.intermediate_size)
    bias = truncation_bias(terms, case.dtype) + (SMOOTH_BIAS[case.dtype] if numerics is None else 0.0)
    # A routing weight near a power of two rounds all of a row of stored numbers the same way.
    one_way = numerics is None and case.op == "unpermute"
    row_bias = 2.0 ** -FORMATS[case.dtype].precision if one_way else 0.0
    # Gate and up are two sums, and the second GEMM is one of their product.
    sums = 3 if case.op in ("fused_experts", *SOME_ROWS, *LAYERS) else 1
    bias += sums * ACCUMULATORS[(numerics or FLOOR).accumulate].bias(terms)
    inputs = oracle.inputs(case)
    groups = {"expert": inputs["topk_ids"]} if case.op == "fused_experts" else {}
    return judge_statistics(
        out,
        values,
        step=ulp(values.rounded, stored_as),
        bias=bias,
        row_bias=row_bias,
        row=_row_name(case),
        groups=groups,
        elementwise=case.op == "act_and_mul",
        bits=declared and numerics is not None and stored_as != "fp32",
    )


def _structure(case: Case, inputs: dict[str, Any], outputs: tuple[AnyArray, ...], oracle: Oracle) -> Judgement:
    expected = oracle.outputs(case)
    judgement = judge_structure(case, inputs, outputs, expected)
    zeros = tuple(np.zeros_like(output) for output in outputs)
    if judgement.verdict is Verdict.PASS and judge_structure(case, inputs, zeros, expected).verdict is Verdict.PASS:
        return _vacuous("all-zeros outputs pass")
    return judgement


def _routing(
    case: Case,
    inputs: dict[str, Any],
    outputs: tuple[AnyArray, ...],
    limits: Limits,
    numerics: Numerics | None,
    tie: TieRule | None,
    declared: bool,
) -> list[Judgement]:
    weights, ids = to_float64(outputs[0]), outputs[1].astype(np.int64)
    if not case.num_tokens:
        return [_vacuous("there are no tokens")]
    return judge_routing(case, inputs, weights, ids, numerics=numerics, tol=limits.tol, tie=tie, declared=declared)


def _vacuous(reason: str) -> Judgement:
    return Judgement(check="vacuity", verdict=Verdict.VACUOUS, message=f"This case shows nothing: {reason}.")


def _row_name(case: Case) -> str:
    return SAMPLED_TOKEN if case.sampled else ROW_NAMES.get(case.op, "token")


def poison_sizes(case: Case, inputs: dict[str, Any]) -> tuple[int, ...] | None:
    """Shape of the op's single output, where it is known beforehand: what an `out` argument is made with."""
    sizes = output_sizes(case, inputs)
    return tuple(size for size in sizes[0] if size is not None) if len(sizes) == 1 else None
