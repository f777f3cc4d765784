"""The check of all routing weights: honest routers pass under each contract; what no single weight shows is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from moecheck.bounds import weight_bound
from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict, worst
from moecheck.checks.routing import judge_routing
from moecheck.formats import Float64, round_to, to_float64
from moecheck.numerics import INPUT, Numerics
from moecheck.references.topk_routing import top_ids, topk_routing, weights_of_ids
from moecheck.spec import MoESpec, RoutingSpec

Ids = npt.NDArray[np.int64]
Output = tuple[Float64, Ids]
SOFTMAX = RoutingSpec(top_k=4, renormalize=True)
SIGMOID = RoutingSpec(
    top_k=8,
    scoring="sigmoid",
    renormalize=True,
    renorm_eps=1e-20,
    renorm_eps_rule="add",
    routed_scaling_factor=2.5,
)
PLAIN_SUMS = replace(SOFTMAX, renormalize=False)
FP32 = Numerics(out="fp32")
LOW_WEIGHTS = Numerics(topk_weights=INPUT, out="fp32")
LOW_SCORES = Numerics(scores=INPUT, out="fp32")
LOW = Numerics(scores=INPUT, topk_weights=INPUT, out="fp32")
SEEDS = range(6)


def case_of(routing: RoutingSpec, dtype: str = "bf16", **changes: object) -> Case:
    values = {"num_experts": 16, "num_tokens": 128, "dtype": dtype, **changes}
    return Case(op="topk_routing", spec=MoESpec(routing=routing), **values)  # type: ignore[arg-type]  # Case's fields


def rounded(values: Float64, name: str) -> Float64:
    return np.asarray(values, np.float32).astype(np.float64) if name == "fp32" else round_to(values, name)


def router(
    case: Case,
    numerics: Numerics = FP32,
    *,
    low_steps: bool = False,
    factor: float = 1.0,
    eps: float | None = None,
) -> Output:
    """A router in fp32 with the stores of `numerics`; low_steps: the sum, quotient and product are low too."""
    contract, spec, one = numerics.resolve(case.dtype), case.spec.routing, np.float32(1)
    logits = case.inputs()["router_logits"].astype(np.float32)
    if spec.scoring == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
    else:
        scores = one / (one + np.exp(-logits))
    scores = rounded(scores.astype(np.float64), contract.scores).astype(np.float32)
    ids = top_ids(scores.astype(np.float64), spec.top_k).astype(np.int64)
    weights, steps = np.take_along_axis(scores, ids, axis=1), contract.scores if low_steps else "fp32"

    def kept(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return rounded(values.astype(np.float64), steps).astype(np.float32)

    if spec.renormalize:
        total = weights.sum(axis=1, keepdims=True) + np.float32(spec.renorm_eps if eps is None else eps)
        weights = kept(weights / kept(total))
    weights = kept(weights * np.float32(spec.routed_scaling_factor)).astype(np.float64) * factor
    return rounded(weights, contract.topk_weights), ids


def judged(case: Case, output: Output, numerics: Numerics | None) -> list[Judgement]:
    return judge_routing(case, case.inputs(), *output, numerics=numerics, tol=1e-2)


def verdict(case: Case, output: Output, numerics: Numerics | None) -> Verdict:
    return worst([judgement.verdict for judgement in judged(case, output, numerics)])


def statistics(case: Case, output: Output, numerics: Numerics | None) -> Judgement:
    return next(line for line in judged(case, output, numerics) if line.check == "statistics")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("routing", [SOFTMAX, SIGMOID, PLAIN_SUMS], ids=["softmax", "sigmoid", "not renormalised"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("numerics", [FP32, LOW_WEIGHTS, LOW_SCORES, LOW], ids=["fp32", "weights", "scores", "both"])
def test_an_honest_router_passes(numerics: Numerics, dtype: str, routing: RoutingSpec, seed: int) -> None:
    case = case_of(routing, dtype, seed=seed)

    for low_steps in (False, True) if numerics is LOW else (False,):
        lines = judged(case, router(case, numerics, low_steps=low_steps), numerics)
        assert [line.verdict for line in lines] == [Verdict.PASS] * 3, [line.message for line in lines]


@pytest.mark.parametrize("load", ["ties", "near_ties", "gapped", "extreme", "negative"])
@pytest.mark.parametrize("numerics", [FP32, LOW_WEIGHTS, LOW], ids=["fp32", "weights", "both"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_equal_weights_that_round_alike_are_no_false_alarm(dtype: str, numerics: Numerics, load: str) -> None:
    case = case_of(SIGMOID, dtype, load=load)
    weights, ids = topk_routing(**case.inputs(), spec=SIGMOID)
    contract = numerics.resolve(dtype)
    weights = weights_of_ids(**case.inputs(), topk_ids=ids, spec=SIGMOID, scores=contract.scores)
    output = rounded(weights, contract.topk_weights), ids.astype(np.int64)

    assert verdict(case, output, numerics) is Verdict.PASS


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("numerics", "dtype", "factor"),
    [
        pytest.param(FP32, "bf16", 1.00002, id="fp32"),
        pytest.param(FP32, "fp32", 1.000002, id="fp32, tiny"),
        pytest.param(LOW_WEIGHTS, "bf16", 1.0005, id="bf16"),
        pytest.param(LOW_WEIGHTS, "bf16", 1.002, id="bf16, large"),
        pytest.param(LOW_WEIGHTS, "fp16", 1.0002, id="fp16"),
        pytest.param(LOW, "bf16", 1.002, id="bf16 scores"),
        pytest.param(LOW_SCORES, "bf16", 1.0005, id="bf16 scores, fp32 weights"),
    ],
)
def test_a_factor_is_seen(numerics: Numerics, dtype: str, factor: float, seed: int) -> None:
    case = case_of(SIGMOID, dtype, seed=seed)

    assert statistics(case, router(case, numerics, factor=factor), numerics).verdict is Verdict.FAIL
    assert statistics(case, router(case, numerics, factor=1 / factor), numerics).verdict is Verdict.FAIL


def test_no_single_weight_shows_such_a_factor() -> None:
    case = case_of(SIGMOID)
    weights, ids = router(case, LOW_WEIGHTS, factor=1.002)
    expected = weights_of_ids(**case.inputs(), topk_ids=ids, spec=SIGMOID)
    allowed = weight_bound(expected, to_float64(case.inputs()["router_logits"]), top_k=8, dtype="bf16")

    assert (np.abs(weights - expected) <= allowed).all()
    lines = {line.check: line for line in judged(case, (weights, ids), LOW_WEIGHTS)}
    assert (lines["weights"].verdict, lines["statistics"].verdict) == (Verdict.PASS, Verdict.FAIL)


@pytest.mark.parametrize(("numerics", "most"), [(FP32, 3e-6), (LOW_WEIGHTS, 1e-4), (LOW, 2e-4)])
def test_a_pass_says_what_it_would_have_shown(numerics: Numerics, most: float) -> None:
    case = case_of(SIGMOID)
    numbers = statistics(case, router(case, numerics), numerics).numbers

    assert abs(numbers["slope_error"]) <= numbers["limit_slope_error"] < numbers["smallest_factor"] < most


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_only_an_eps_beyond_rounding_is_wrong(dtype: str) -> None:
    case = case_of(SIGMOID, dtype)

    assert verdict(case, router(case, eps=1e-6), FP32) is Verdict.PASS
    assert verdict(case, router(case, eps=1e-3), FP32) is Verdict.FAIL
    assert verdict(case, router(case, LOW_WEIGHTS, eps=1e-6), LOW_WEIGHTS) is Verdict.PASS
    assert verdict(case, router(case, LOW_WEIGHTS, eps=5e-3), LOW_WEIGHTS) is Verdict.FAIL


def _truncated(weights: Float64) -> Float64:
    bits = weights.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def _through_fp16(weights: Float64) -> Float64:
    return round_to(round_to(weights, "fp16"), "bf16")


def _up(weights: Float64) -> Float64:
    """The next number above where bf16 rounds down."""
    low = round_to(weights, "bf16")
    return np.where(low < weights, low + (low - _truncated(low * (1 - 2.0**-9))), low)


@pytest.mark.parametrize("change", [_truncated, _through_fp16, _up])
def test_another_rounding_than_to_nearest_is_seen(change: Callable[[Float64], Float64]) -> None:
    case = case_of(SIGMOID, num_tokens=1024)
    weights, ids = router(case)

    assert verdict(case, (change(weights), ids), LOW_WEIGHTS) is Verdict.FAIL


def test_weights_summed_low_are_not_those_summed_in_fp32() -> None:
    case = case_of(SIGMOID)

    assert verdict(case, router(case, LOW, low_steps=True), LOW_WEIGHTS) is Verdict.FAIL


def test_weights_that_are_low_and_hidden_fail_with_their_declaration() -> None:
    case = case_of(SIGMOID)
    found = [line for line in judged(case, router(case, LOW_WEIGHTS), None) if line.check == "weights"]

    assert found[0].verdict is Verdict.FAIL
    assert 'if that is meant, declare numerics=moecheck.Numerics(topk_weights="input").' in found[0].message
    wrong = [line for line in judged(case, router(case, LOW_WEIGHTS, factor=1.3), None) if line.check == "weights"]
    assert "declare" not in wrong[0].message


def test_a_contract_that_was_found_elsewhere_is_not_held_against_a_case() -> None:
    case = case_of(SIGMOID)
    lines = judge_routing(case, case.inputs(), *router(case), numerics=LOW_WEIGHTS, tol=1e-2, declared=False)

    assert worst([line.verdict for line in lines]) is Verdict.PASS


@pytest.mark.parametrize("down", [False, True])
def test_equal_weights_half_way_between_two_numbers_may_round_either_way(down: bool) -> None:
    spec = RoutingSpec(top_k=2, renormalize=True)
    case, step = case_of(spec, "fp16"), 2.0**-10
    logits = np.tile(1.0 + step * np.array([3, 0, *(-np.arange(100, 114))]), (128, 1)).astype(np.float16)
    ids = np.tile(np.array([0, 1]), (128, 1))
    exact = weights_of_ids(router_logits=logits, topk_ids=ids, spec=spec)
    weights = round_to(exact, "fp16")
    assert (np.abs(weights[:, 0] - exact[:, 0]) > 0.49999 * 2.0**-11).all()
    weights[:, 0] = exact[0, 0] // 2.0**-11 * 2.0**-11 + (0.0 if down else 2.0**-11)

    lines = judge_routing(case, {"router_logits": logits}, weights, ids, numerics=LOW_WEIGHTS, tol=1e-2)
    assert worst([line.verdict for line in lines]) is Verdict.PASS, [line.message for line in lines]
    weights[:, 0] += 2.0**-11 * (-1 if down else 1)
    lines = judge_routing(case, {"router_logits": logits}, weights, ids, numerics=LOW_WEIGHTS, tol=1e-2)
    assert worst([line.verdict for line in lines]) is Verdict.FAIL


def test_few_weights_have_no_statistics() -> None:
    case = case_of(SOFTMAX, num_tokens=15)

    assert "statistics" not in {line.check for line in judged(case, router(case), FP32)}


def test_fused_shared_slots_are_left_out() -> None:
    spec = replace(SOFTMAX, num_fused_shared_experts=2)
    case = case_of(spec, "fp32", num_tokens=16)
    weights, ids = topk_routing(**case.inputs(), spec=spec)
    found = statistics(case, (rounded(weights, "fp32"), ids.astype(np.int64)), FP32)

    assert found.verdict is Verdict.PASS
    assert found.numbers["expected_agreement"] < 0.9  # 1 for a constant
