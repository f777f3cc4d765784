"""Every case of every op: the reference's own output passes; zeros, a swapped row and NaN fail."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import SOME_ROWS, VALUE_OPS, Limits, held_rows, judge, poison_sizes
from moecheck.curated import cases_for
from moecheck.formats import AnyArray
from moecheck.ops import OPS
from moecheck.oracle import Oracle
from tests.checks.honest import honest_outputs, verdict_of

CASES = [case for op in OPS for case in cases_for(op, profile="quick", seed=0)]
LIMITS = Limits()


def verdict(case: Case, outputs: tuple[AnyArray, ...], oracle: Oracle) -> Verdict:
    return verdict_of(judge(case, outputs, oracle, LIMITS, None))


def swaps(case: Case, outputs: tuple[AnyArray, ...]) -> Iterator[tuple[AnyArray, ...]]:
    """The outputs with two different rows of one of them exchanged, for each output where order carries meaning."""
    free = {  # rows that a kernel may order, or leave unspecified, as it likes; permuted rows are tested below
        "align_block_size": ("sorted_token_ids", "expert_ids", "num_tokens_post_padded"),
        "permute": ("permuted", "permuted_scale"),
    }.get(case.op, ())
    if case.op == "topk_routing":
        if case.load == "near_ties":  # every choice may be legal for every token: legal sets have their own tests
            return
        chosen = [set(row) for row in outputs[1].tolist()]
        order = np.arange(len(chosen))
        other = next((j for j in range(1, len(chosen)) if chosen[j] != chosen[0]), None)
        if other is None:  # all tokens chose the same experts
            return
        order[[0, other]] = order[[other, 0]]
        yield outputs[0][order], outputs[1][order]
        return
    for i, arg in enumerate(OPS[case.op].outputs):
        rows = outputs[i]
        if arg.name in free or rows.ndim == 0 or len(rows) < 2:
            continue
        others = [j for j in range(1, len(rows)) if not np.array_equal(rows[0], rows[j], equal_nan=arg.kind == "input")]
        if others:
            swapped = rows.copy()
            swapped[[0, others[0]]] = rows[[others[0], 0]]
            yield (*outputs[:i], swapped, *outputs[i + 1 :])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_right_passes_and_wrong_fails(case: Case) -> None:
    oracle = Oracle()
    outputs = honest_outputs(case, oracle)
    empty = case.num_tokens == 0 and case.op != "problem_sizes"

    elsewhere = case.load == "one_expert" and case.num_local_experts is not None  # perhaps all experts are
    assert verdict(case, outputs, oracle) in (
        {Verdict.VACUOUS} if empty else {Verdict.PASS, *[Verdict.VACUOUS] * elsewhere}
    )
    if case.num_tokens < 2 or elsewhere:
        return
    zeros = tuple(np.zeros_like(output) for output in outputs)
    assert verdict(case, zeros, oracle) in FAILURES
    wrong = list(swaps(case, outputs))
    assert wrong or case.op == "align_block_size" or case.load in ("near_ties", "ties")
    for swapped in wrong:
        assert verdict(case, swapped, oracle) in FAILURES
    for i, output in enumerate(outputs):
        if output.dtype.kind not in "iu" and output.size and not (case.op == "permute" and i == 1):
            place: tuple[int, ...] = (int(outputs[3].max()) if case.op == "permute" else len(output) // 2, -1)
            if case.op in SOME_ROWS:
                held = np.argwhere(held_rows(oracle.inputs(case)).reshape(output.shape[:2]))
                place = (*held[len(held) // 2], -1)
            for wrong_number in (np.nan, np.inf, -np.inf):
                poisoned = output.copy()
                poisoned[place] = wrong_number
                assert verdict(case, (*outputs[:i], poisoned, *outputs[i + 1 :]), oracle) in FAILURES


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.op in VALUE_OPS and case.num_tokens > 1], ids=lambda case: case.id
)
def test_five_percent_too_much_fails(case: Case) -> None:
    oracle = Oracle()
    (out,) = honest_outputs(case, oracle)

    with np.errstate(over="ignore"):  # the probes go to the end of the format
        wrong = (out.astype(np.float64) * 1.05).astype(out.dtype)

    assert verdict(case, (wrong,), oracle) in FAILURES


@pytest.mark.parametrize("op", ["fused_experts", "align_block_size", "unpermute"])
def test_a_wrong_output_of_a_vacuous_case_still_fails(op: str) -> None:
    case, oracle = _all_padding(op), Oracle()
    outputs = honest_outputs(case, oracle)
    wrong = {"align_block_size": 2}.get(op, 0)
    broken = [output.copy() for output in outputs]
    broken[wrong].reshape(-1)[-1] = 7

    assert verdict(case, outputs, oracle) is Verdict.VACUOUS
    assert verdict(case, tuple(broken), oracle) in FAILURES


@pytest.mark.parametrize("op", ["fused_experts", "grouped_gemm"])
def test_an_integer_case_allows_no_bit_of_difference(op: str) -> None:
    case, oracle = Case(op=op, stratum="integer"), Oracle()
    (out,) = honest_outputs(case, oracle)
    row, column = np.argwhere(out != 0)[0]
    out[row, column] = np.nextafter(out[row, column], out.dtype.type(0))

    assert verdict(case, (out,), oracle) is Verdict.PROVEN_WRONG


def test_a_tolerance_that_zeros_pass_makes_the_case_vacuous() -> None:
    case, oracle = Case(op="fused_experts"), Oracle()
    outputs = honest_outputs(case, oracle)
    generous = Limits(tol=100.0)

    assert verdict_of(judge(case, outputs, oracle, generous, None)) is Verdict.VACUOUS
    assert verdict_of(judge(case, (np.zeros_like(outputs[0]),), oracle, generous, None)) in FAILURES


def test_the_cap_on_mismatches_reaches_the_verdict() -> None:
    case, oracle = Case(op="fused_experts"), Oracle()
    outputs = honest_outputs(case, oracle)
    strict = Limits(tol=0.0, max_mismatch=0.0)

    assert verdict_of(judge(case, outputs, oracle, strict, None)) is Verdict.FAIL
    assert verdict_of(judge(case, outputs, oracle, Limits(tol=0.0), None)) is Verdict.PASS


def test_the_report_gets_the_output_and_what_it_was_compared_with() -> None:
    case, oracle = Case(op="fused_experts"), Oracle()
    (out,) = honest_outputs(case, oracle)
    judged = judge(case, (out,), oracle, LIMITS, None)

    assert judged.out is out
    assert judged.values is not None
    assert [judgement.check for judgement in judged.judgements] == ["contract", "values", "statistics"]


def test_a_broken_contract_stops_the_judging() -> None:
    case, oracle = Case(op="fused_experts"), Oracle()
    judged = judge(case, (np.zeros((1, 1)),), oracle, LIMITS, None)

    assert [judgement.check for judgement in judged.judgements] == ["contract"]
    assert verdict_of(judged) is Verdict.PROVEN_WRONG


@pytest.mark.parametrize("op", list(OPS))
def test_only_single_outputs_of_known_shape_can_be_given(op: str) -> None:
    case, oracle = Case(op=op), Oracle()
    outputs = honest_outputs(case, oracle)
    wanted = outputs[0].shape if len(outputs) == 1 else None

    assert poison_sizes(case, oracle.inputs(case)) == wanted


def _all_padding(op: str) -> Case:
    """The first case by seed whose every id is -1."""
    cases = (Case(op=op, load="padding", num_tokens=1, dtype="fp32", seed=seed) for seed in range(1000))
    name = "inv_permuted_idx" if op == "unpermute" else "topk_ids"
    return next(case for case in cases if (case.inputs()[name] == -1).all())


def test_what_no_rounding_explains_is_proven_wrong() -> None:
    case, oracle = Case(op="fused_experts"), Oracle()
    (out,) = honest_outputs(case, oracle)

    zeros = judge(case, (np.zeros_like(out),), oracle, LIMITS, None).judgements[1]
    slightly = judge(case, ((out.astype(np.float64) * 1.01).astype(out.dtype),), oracle, LIMITS, None)

    assert zeros.verdict is Verdict.PROVEN_WRONG
    assert "could be so far off" in zeros.message
    assert verdict_of(slightly) is Verdict.FAIL
