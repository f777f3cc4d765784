"""The check of routing: what is right in another order or by another tie passes, each planted bug is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from moecheck.bounds import score_eps, weight_bound
from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict, worst
from moecheck.checks.routing import judge_routing, judged_rows
from moecheck.formats import Float64, round_to, to_float64
from moecheck.numerics import Numerics
from moecheck.references.topk_routing import top_ids, topk_routing, weights_of_ids
from moecheck.spec import MoESpec, RoutingSpec

Ids = npt.NDArray[np.int64]
Output = tuple[Float64, Ids]
PLAIN = RoutingSpec(top_k=4, renormalize=True, routed_scaling_factor=2.5)
BIASED = RoutingSpec(top_k=4, scoring="sigmoid", correction_bias="select")
GROUPED = RoutingSpec(top_k=4, scoring="sigmoid", num_expert_groups=4, topk_groups=2)
SIGNED = RoutingSpec(
    top_k=4, scoring="sigmoid", correction_bias="select", num_expert_groups=4, topk_groups=1, group_score="top2_sum"
)
SHARED = RoutingSpec(
    top_k=4, routed_scaling_factor=2.5, scaling_placement="routed_output", num_fused_shared_experts=1, renormalize=True
)


def case_of(routing: RoutingSpec, **changes: object) -> Case:
    values = {"num_experts": 16, "dtype": "fp32", **changes}
    return Case(op="topk_routing", spec=MoESpec(routing=routing), **values)  # type: ignore[arg-type]  # Case's fields


def honest(case: Case, spec: RoutingSpec | None = None) -> Output:
    weights, ids = topk_routing(**case.inputs(), spec=spec or case.spec.routing)
    return weights.astype(np.float32).astype(np.float64), ids.astype(np.int64)


def judged(case: Case, output: Output, numerics: Numerics | None = None) -> list[Judgement]:
    return judge_routing(case, case.inputs(), *output, numerics=numerics, tol=1e-2)


def verdict(case: Case, output: Output, numerics: Numerics | None = None) -> Verdict:
    return worst([judgement.verdict for judgement in judged(case, output, numerics)])


def with_ids(case: Case, ids: Ids) -> Output:
    """Weights that belong to the given ids."""
    weights = weights_of_ids(**case.inputs(), topk_ids=ids, spec=case.spec.routing)
    return weights.astype(np.float32).astype(np.float64), ids


@pytest.mark.parametrize("load", ["random", "gapped", "ties", "near_ties", "extreme", "negative"])
@pytest.mark.parametrize("routing", [PLAIN, BIASED, GROUPED, SIGNED, SHARED], ids=lambda r: r.scoring)
def test_the_references_output_passes_in_any_order_of_slots(routing: RoutingSpec, load: str) -> None:
    case = case_of(routing, load=load)
    weights, ids = honest(case)
    order = [2, 0, 3, 1, *range(4, ids.shape[1])]

    assert verdict(case, (weights, ids)) is Verdict.PASS
    assert verdict(case, (weights[:, order], ids[:, order])) is Verdict.PASS


def test_another_choice_among_ties_passes() -> None:
    case = case_of(PLAIN, load="ties")
    logits = to_float64(case.inputs()["router_logits"])
    highest_first = (15 - top_ids(logits[:, ::-1], 4)).astype(np.int64)

    assert (np.sort(highest_first) != np.sort(honest(case)[1])).any()
    assert verdict(case, with_ids(case, highest_first)) is Verdict.PASS


def tie_verdicts(case: Case, output: Output) -> list[Verdict]:
    """Of a kernel that declares tie="lowest_index"."""
    lines = judge_routing(case, case.inputs(), *output, numerics=None, tol=1e-2, tie="lowest_index")
    return [line.verdict for line in lines if line.check == "tie"]


@pytest.mark.parametrize("load", ["random", "gapped", "ties", "near_ties", "extreme", "negative"])
@pytest.mark.parametrize("routing", [PLAIN, BIASED, GROUPED], ids=["softmax", "bias", "groups"])
def test_a_declared_tie_rule_is_kept_by_the_reference(routing: RoutingSpec, load: str) -> None:
    case = case_of(routing, load=load)
    assert set(tie_verdicts(case, honest(case))) <= {Verdict.PASS}
    if routing is PLAIN and load == "ties":
        assert tie_verdicts(case, honest(case)) == [Verdict.PASS]


def test_a_declared_tie_rule_that_is_broken_is_found() -> None:
    case = case_of(PLAIN, load="ties")
    highest_first = (15 - top_ids(to_float64(case.inputs()["router_logits"])[:, ::-1], 4)).astype(np.int64)
    output = with_ids(case, highest_first)

    lines = judge_routing(case, case.inputs(), *output, numerics=None, tol=1e-2, tie="lowest_index")
    (line,) = (line for line in lines if line.check == "tie")
    token = line.where["token"]
    right = sorted(honest(case)[1][token].tolist())

    assert line.verdict is Verdict.PROVEN_WRONG
    assert f"token {token} chose experts {sorted(highest_first[token].tolist())}, expected {right}" in line.message


def test_a_declared_tie_rule_says_nothing_of_nearly_equal_scores() -> None:
    case = case_of(BIASED)
    logits = np.tile(1 - np.arange(16, dtype=np.float32) * np.float32(2**-24), (4, 1))
    inputs: dict[str, Any] = {"router_logits": logits, "correction_bias": np.zeros(16, np.float32)}
    ids = np.tile(np.array([12, 13, 14, 15]), (4, 1))
    weights = weights_of_ids(**inputs, topk_ids=ids, spec=BIASED)

    lines = judge_routing(case, inputs, weights, ids, numerics=None, tol=1e-2, tie="lowest_index")

    assert [(line.check, line.verdict) for line in lines] == [("routing", Verdict.PASS), ("weights", Verdict.PASS)]


@pytest.mark.parametrize("routing", [PLAIN, BIASED], ids=["softmax", "sigmoid and bias"])
@pytest.mark.parametrize("base_two", [False, True], ids=["exp", "exp2"])
@pytest.mark.parametrize("load", ["random", "ties", "near_ties", "extreme", "negative"])
def test_a_kernel_in_fp32_passes(routing: RoutingSpec, base_two: bool, load: str) -> None:
    case = case_of(routing, load=load, num_experts=64, num_tokens=128)
    inputs, one = case.inputs(), np.float32(1)
    logits = inputs["router_logits"].astype(np.float32)
    defined = judged_rows(inputs)
    logits[~defined] = 0

    def exp(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.exp2(x * np.float32(np.log2(np.e))) if base_two else np.exp(x)

    if routing.scoring == "softmax":
        powers = exp(logits - logits.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True, dtype=np.float32)
    else:
        with np.errstate(over="ignore"):
            scores = one / (one + exp(-logits))
    choice = scores + inputs["correction_bias"] if routing is BIASED else scores
    ids = top_ids(choice, 4)
    weights = np.take_along_axis(scores, ids, axis=1)
    if routing.renormalize:
        weights = weights / weights.sum(axis=1, keepdims=True) * np.float32(2.5)

    assert verdict(case, (weights.astype(np.float64), ids.astype(np.int64))) is Verdict.PASS


def test_declared_low_precision_passes_and_undeclared_does_not() -> None:
    case = case_of(PLAIN, load="gapped")
    weights, ids = honest(case)
    low = (round_to(weights, "bf16"), ids)

    assert verdict(case, low, Numerics(topk_weights="bf16")) is Verdict.PASS
    assert verdict(case, low) is Verdict.FAIL


def _ids(change: Callable[[Ids], None]) -> Callable[[Case], Output]:
    def plant(case: Case) -> Output:
        weights, ids = honest(case)
        change(ids)
        return weights, ids

    return plant


def _weights(change: Callable[[Float64], Float64]) -> Callable[[Case], Output]:
    return lambda case: (change(honest(case)[0]), honest(case)[1])


def _spec(**changes: Any) -> Callable[[Case], Output]:
    def plant(case: Case) -> Output:
        return honest(case, replace(case.spec.routing, **changes))

    return plant


def _set(value: int, where: tuple[object, ...]) -> Callable[[Ids], None]:
    return lambda ids: ids.__setitem__(where, value)  # type: ignore[index]  # an index for NumPy


def _duplicate(ids: Ids) -> None:
    ids[5, 3] = ids[5, 0]


def _second_best(case: Case) -> Output:
    order = top_ids(to_float64(case.inputs()["router_logits"]), 6).astype(np.int64)
    return with_ids(case, order[:, 1:5])


def _last_missed(case: Case) -> Output:
    order = top_ids(to_float64(case.inputs()["router_logits"]), 6).astype(np.int64)
    return with_ids(case, order[:, [0, 1, 2, 4]])


def _biased_weights(case: Case) -> Output:
    weights, ids = honest(case)
    return weights + to_float64(case.inputs()["correction_bias"])[ids], ids


def _one(factor: float) -> Callable[[Float64], Float64]:
    def change(weights: Float64) -> Float64:
        weights[7, 2] *= factor
        return weights

    return change


def _shared_at_one(weights: Float64) -> Float64:
    weights[:, 4] = 1.0
    return weights


def _mask_zero(case: Case) -> Output:
    zero = replace(case.spec.routing, group_mask="zero")
    return with_ids(case, honest(case, zero)[1])


PLANTED = [
    pytest.param(PLAIN, _ids(_duplicate), Verdict.PROVEN_WRONG, "are not distinct", id="duplicate id"),
    pytest.param(PLAIN, _ids(_set(16, (3, 1))), Verdict.PROVEN_WRONG, "token 3, slot 1: id 16 is out", id="id E"),
    pytest.param(PLAIN, _ids(_set(-1, (3, 1))), Verdict.PROVEN_WRONG, "id -1 is out of range 0 to 15", id="id -1"),
    pytest.param(PLAIN, _ids(_set(2**32, (3, 1))), Verdict.PROVEN_WRONG, "is out of range", id="id beyond int32"),
    pytest.param(PLAIN, _second_best, Verdict.PROVEN_WRONG, "64 of 64 tokens have an illegal choice", id="second best"),
    pytest.param(PLAIN, _last_missed, Verdict.PROVEN_WRONG, "rounding of the scores", id="the k-th missed"),
    pytest.param(BIASED, _biased_weights, Verdict.FAIL, "weight", id="biased scores as weights"),
    pytest.param(BIASED, _spec(correction_bias="none"), Verdict.PROVEN_WRONG, "chose experts", id="bias ignored"),
    pytest.param(PLAIN, _spec(routed_scaling_factor=1.0), Verdict.FAIL, "100.0% of the weights", id="factor dropped"),
    pytest.param(PLAIN, _spec(routed_scaling_factor=6.25), Verdict.FAIL, "100.0% of the weights", id="factor twice"),
    pytest.param(PLAIN, _spec(renormalize=False), Verdict.FAIL, "of the weights are wrong", id="not renormalised"),
    pytest.param(BIASED, _spec(renormalize=True), Verdict.FAIL, "of the weights are wrong", id="renormalised"),
    pytest.param(PLAIN, _weights(lambda w: w[:, ::-1]), Verdict.FAIL, "of the weights", id="weights reversed"),
    pytest.param(PLAIN, _weights(lambda w: w * 1.0001), Verdict.FAIL, "100.0% of the weights", id="times 1.0001"),
    pytest.param(PLAIN, _weights(lambda w: w / 1.0001), Verdict.FAIL, "100.0% of the weights", id="by 1.0001"),
    pytest.param(PLAIN, _weights(_one(1.0001)), Verdict.FAIL, "token 7, slot 2", id="one weight times 1.0001"),
    pytest.param(PLAIN, _weights(_one(np.nan)), Verdict.PROVEN_WRONG, "token 7, slot 2", id="NaN weight"),
    pytest.param(PLAIN, _weights(_one(np.inf)), Verdict.PROVEN_WRONG, "token 7, slot 2", id="infinite weight"),
    pytest.param(PLAIN, _weights(_one(-1.0)), Verdict.FAIL, "token 7, slot 2", id="negative weight"),
    pytest.param(PLAIN, _weights(np.zeros_like), Verdict.FAIL, "100.0% of the weights", id="zero weights"),
    pytest.param(SHARED, _weights(_shared_at_one), Verdict.FAIL, "slot 4", id="shared weighs 1"),
    pytest.param(SHARED, _ids(_set(17, (2, 4))), Verdict.PROVEN_WRONG, "fused shared slots hold [17]", id="shared id"),
    pytest.param(SHARED, _ids(_set(0, (2, 4))), Verdict.PROVEN_WRONG, "fused shared slots hold [0]", id="no shared id"),
    pytest.param(GROUPED, _spec(topk_groups=4), Verdict.PROVEN_WRONG, "chose experts", id="groups ignored"),
    pytest.param(SIGNED, _mask_zero, Verdict.PROVEN_WRONG, "chose experts", id="masked groups at 0"),
]


@pytest.mark.parametrize(("routing", "plant", "wanted", "text"), PLANTED)
def test_a_planted_bug_is_found(
    routing: RoutingSpec, plant: Callable[[Case], Output], wanted: Verdict, text: str
) -> None:
    case = case_of(routing)
    failing = [judgement for judgement in judged(case, plant(case)) if judgement.verdict is not Verdict.PASS]

    assert failing[0].verdict is wanted
    assert {judgement.check for judgement in failing[1:]} <= {"statistics"}
    assert text in failing[0].message
    assert "token" in failing[0].where


def test_ids_permuted_without_their_weights_fail() -> None:
    case = case_of(PLAIN)
    weights, ids = honest(case)

    assert verdict(case, (weights, ids[:, [1, 0, 2, 3]])) is Verdict.FAIL


def test_every_token_counts() -> None:
    case = case_of(PLAIN)
    for token in (0, 31, 63):
        weights, ids = honest(case)
        ids[token] = _second_best(case)[1][token]
        result = judged(case, (weights, ids))[0]
        assert result.verdict is Verdict.PROVEN_WRONG
        assert result.where == {"token": token}


def test_undefined_rows_need_only_distinct_ids_in_range() -> None:
    case = case_of(PLAIN, load="extreme")
    weights, ids = honest(case)
    undefined = np.flatnonzero(~judged_rows(case.inputs()))
    weights[undefined], ids[undefined] = np.nan, [12, 13, 14, 15]

    assert undefined.tolist() == [t for t in range(64) if t % 8 in (5, 6)]
    assert verdict(case, (weights, ids)) is Verdict.PASS
    ids[undefined[0]] = 12
    assert verdict(case, (weights, ids)) is Verdict.PROVEN_WRONG


def test_rows_without_any_finite_logit_are_undefined() -> None:
    logits = np.array([[-np.inf, -np.inf], [-np.inf, 0.0], [np.inf, 0.0], [np.nan, 0.0], [1.0, 0.0]], np.float32)

    assert judged_rows({"router_logits": logits}).tolist() == [False, True, False, False, True]


def test_nothing_defined_decides_nothing() -> None:
    case = case_of(PLAIN, num_tokens=2)
    inputs = {"router_logits": np.full((2, 16), np.nan, np.float32)}
    result = judge_routing(case, inputs, np.ones((2, 4)), np.array([[0, 1, 2, 3]] * 2), numerics=None, tol=1e-2)

    assert [judgement.verdict for judgement in result] == [Verdict.INCONCLUSIVE]


def test_the_ambiguous_share_is_reported() -> None:
    gapped, ties = (
        judged(case_of(PLAIN, load=load), honest(case_of(PLAIN, load=load)))[0].numbers["ambiguous_share"]
        for load in ("gapped", "ties")
    )

    assert gapped == 0 < ties <= 1


def test_scores_far_below_the_largest_may_be_off_by_their_argument() -> None:
    near, far = (score_eps(np.array([0.25]), 0.0, "fp32", spread=spread) for spread in (0.0, 80.0))

    assert (far > near).all()
    assert np.isfinite(score_eps(np.array([-np.inf]), 0.0, "fp32", spread=np.array([0.0]))).all()


def test_weight_bound_scales_with_the_weight() -> None:
    logits = np.zeros((1, 8))
    one, two = (weight_bound(np.array([[w]]), logits, top_k=2, dtype="fp32") for w in (1.0, 2.0))

    assert (two > one).all()
    assert (weight_bound(np.array([[1.0]]), logits, top_k=2, dtype="bf16") > one).all()
    assert (weight_bound(np.array([[-1.0]]), logits, top_k=2, dtype="fp32") == one).all()
