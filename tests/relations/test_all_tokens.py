"""Large cases: honest kernels pass, and what is wrong outside of the sample is found as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Judgement, Verdict, verdict_of
from moecheck.checks.judge import Limits, judge
from moecheck.formats import AnyArray, store, to_float64
from moecheck.kernel import Declaration, describe
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle, call_reference, reference_modules
from moecheck.references.fused_experts import fused_experts
from moecheck.relations.all_tokens import all_token_calls, crowd, judge_all_token_calls
from moecheck.sampled_inputs import experts_seen, sampled_rows
from moecheck.spec import MoESpec, RoutingSpec

Kernel = Callable[[dict[str, Any]], AnyArray]
NUMERICS = Numerics(act_times_up="input")
CASE = Case(
    op="fused_experts",
    spec=MoESpec(routing=RoutingSpec(top_k=2)),
    num_tokens=160,
    num_experts=8,
    hidden_size=96,
    intermediate_size=64,
    sampled=24,
)


def plain(*, hidden_states: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Any:
    """A signature for a declaration."""


DECLARATION: Declaration = describe(plain, op="fused_experts", backend="numpy", numerics=NUMERICS)


def honest(inputs: dict[str, Any]) -> AnyArray:
    """The reference with NUMERICS's roundings, stored in bf16."""
    return store(fused_experts(**inputs, spec=CASE.spec.experts, numerics=NUMERICS, dtype="bf16"), "bf16")


def judged(kernel: Kernel, case: Case = CASE, declaration: Declaration = DECLARATION) -> tuple[Judgement, ...]:
    """All that a run says of a kernel on a sampled case."""
    oracle, inputs = Oracle(), case.inputs()
    weights: dict[str, Any] = {name: inputs[name] for name in ("w13", "w2")}
    out = kernel(inputs)
    found = judge(case, (out,), oracle, Limits(), NUMERICS).judgements
    if verdict_of(found) is not Verdict.PASS:
        return found
    further = tuple(kernel({**call.inputs, **weights}) for call in all_token_calls(case))
    return (*found, *judge_all_token_calls(oracle, declaration, case, out, further, NUMERICS))


@pytest.mark.parametrize("load", ["random", "skewed", "padding", "one_expert"])
def test_an_honest_kernel_passes(load: str) -> None:
    """With padding too, whose rows are 0."""
    found = judged(honest, replace(CASE, load=load))
    assert [j.check for j in found if j.verdict is not Verdict.PASS] == []
    assert {"all_tokens", "values", "statistics", "row_sizes", "sampled_crowd", "token_order"} <= {
        j.check for j in found
    }


@pytest.mark.parametrize("op", ["moe_layer", "unpermute"])
def test_other_ops_are_sampled_too(op: str) -> None:
    """A whole layer and the sum of permuted rows: the reference with rounding passes, one wrong row fails."""
    case = replace(CASE, op=op)
    declaration = replace(DECLARATION, op=op, arguments=tuple(case.inputs()))
    numerics = Numerics(act_times_up="input") if op == "moe_layer" else Numerics()
    reference = getattr(reference_modules()[op], op)
    oracle = Oracle()

    def kernel(inputs: dict[str, Any]) -> AnyArray:
        return store(call_reference(reference, case, inputs, numerics=numerics, dtype=case.dtype), case.dtype)

    inputs = case.inputs()
    weights: dict[str, Any] = {name: inputs[name] for name in ("w13", "w2") if name in inputs}
    out = kernel(inputs)
    assert verdict_of(judge(case, (out,), oracle, Limits(), numerics).judgements) is Verdict.PASS
    further = tuple(kernel({**call.inputs, **weights}) for call in all_token_calls(case))
    found = judge_all_token_calls(oracle, declaration, case, out, further, numerics)
    assert verdict_of(found) is Verdict.PASS
    wrong = further[0].copy()
    wrong[[5, 6]] = wrong[[6, 5]]
    found = judge_all_token_calls(oracle, declaration, case, out, (wrong, further[1]), numerics)
    assert {j.check for j in found if j.verdict in FAILURES} == {"sampled_crowd"}
    token = int(sampled_rows(case)[4])
    out[token, 2] = 64.0
    assert verdict_of(judge(case, (out,), oracle, Limits(), numerics).judgements) in FAILURES


def outside(inputs: dict[str, Any]) -> int:
    """A token that is none of the sampled ones."""
    del inputs
    return next(t for t in range(CASE.num_tokens) if t not in sampled_rows(CASE))


def unwritten(inputs: dict[str, Any]) -> AnyArray:
    out = honest(inputs)
    out[outside(inputs)] = np.nan
    return out


def zeroed(inputs: dict[str, Any]) -> AnyArray:
    out = honest(inputs)
    out[outside(inputs)] = 0
    return out


def wrong_expert(inputs: dict[str, Any]) -> AnyArray:
    """The last expert computes with the weights of the first."""
    w13 = inputs["w13"].copy()
    w13[-1] = w13[0]
    return honest({**inputs, "w13": w13})


def swapped_blocks(inputs: dict[str, Any]) -> AnyArray:
    """Of one expert, two blocks of 16 columns of w13 change places."""
    w13 = inputs["w13"].copy()
    w13[5, :, :16], w13[5, :, 16:32] = w13[5, :, 16:32].copy(), w13[5, :, :16].copy()
    return honest({**inputs, "w13": w13})


def dropped_experts(inputs: dict[str, Any]) -> AnyArray:
    """Unsampled tokens of the case lose a slot, as where an expert takes only so many; where they may be is known."""
    ids, weights = inputs["topk_ids"], inputs["topk_weights"].copy()
    tokens = [t for t in range(len(ids)) if t not in sampled_rows(CASE) and (weights[t] > 0).all()]
    weights[tokens, np.argmax(weights[tokens], axis=1)] = 0.0
    return honest({**inputs, "topk_weights": weights})


def last_rows_shifted(inputs: dict[str, Any]) -> AnyArray:
    """The place that is wrong is not in the sample: its row is its neighbour's."""
    out = honest(inputs)
    place = outside(inputs)
    out[place] = out[place - 1]
    return out


def larger_at_places(inputs: dict[str, Any]) -> AnyArray:
    """Rows at unsampled places are 5 % too large."""
    out = to_float64(honest(inputs))
    places = [t for t in range(len(out)) if t not in sampled_rows(CASE)]
    out[places] *= 1.05
    return store(out, "bf16")


@pytest.mark.parametrize(
    ("kernel", "check"),
    [
        (unwritten, "all_tokens"),
        (zeroed, "all_tokens"),
        (wrong_expert, "values"),
        (swapped_blocks, "values"),
        (dropped_experts, "row_sizes"),
        (last_rows_shifted, "sampled_crowd"),
        (larger_at_places, "sampled_crowd"),
        (larger_at_places, "token_order"),
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_a_kernel_that_is_wrong_in_one_place_fails(kernel: Kernel, check: str) -> None:
    """Each check finds the fault that it is there for."""
    found = {j.check: j for j in judged(kernel) if j.verdict in FAILURES}
    assert check in found
    assert found[check].message


def test_the_message_names_the_token_and_not_its_number_in_the_sample() -> None:
    """A reader looks for the row of the output."""
    token = int(sampled_rows(CASE)[7])

    def wrong(inputs: dict[str, Any]) -> AnyArray:
        out = honest(inputs)
        out[token, 3] = 64.0
        return out

    found = next(j for j in judged(wrong) if j.check == "values")
    assert found.where["token"] == token
    assert f"is token {token}." in found.message


def test_declared_batch_invariance_is_taken_at_its_word() -> None:
    """One other bit in another order fails a kernel that declares it, and no other."""

    def moody(inputs: dict[str, Any]) -> AnyArray:
        out = honest(inputs)
        bits = out.view(np.uint16)
        bits[0, 0] ^= 1
        return out

    declared = replace(DECLARATION, batch_invariant=True)
    verdicts = {
        which: {j.check: j.verdict for j in judged(moody, declaration=d)}
        for which, d in (("declared", declared), ("not", DECLARATION))
    }
    assert verdicts["declared"]["token_order"] is Verdict.PROVEN_WRONG
    assert verdicts["not"]["token_order"] is Verdict.PASS


@pytest.mark.parametrize("tokens", [1, 5, 24, 160, 1000])
def test_the_sample_is_distinct_and_visits_the_experts(tokens: int) -> None:
    """First and last token always; with as many tokens as experts all of those that have any."""
    case = replace(CASE, num_tokens=tokens)
    rows = sampled_rows(case)
    assert len(rows) == min(tokens, case.sampled)
    assert len(set(rows.tolist())) == len(rows)
    assert {0, tokens - 1} <= set(rows.tolist())
    seen, used = experts_seen(case)
    assert seen == used
    assert crowd(case).max() < len(rows)


def test_padded_tokens_are_in_the_sample() -> None:
    """Whole ones, and ones with single slots."""
    case = replace(CASE, load="padding", num_tokens=2000)
    ids = case.inputs()["topk_ids"][sampled_rows(case)]
    missing = (ids < 0).sum(axis=1)
    assert {1, 2} <= set(missing.tolist())


def test_threads_change_no_number() -> None:
    """Several experts at a time, each with noise of its own."""
    one, many = (Oracle(threads=n).values(CASE, NUMERICS) for n in (1, 3))
    for name in ("true", "sigma", "rounded"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
