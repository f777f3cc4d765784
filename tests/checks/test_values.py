"""The check of values: rounding and honest noise pass; each planted error is found and its place named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from moecheck.bounds import FLUSHED, value_bound, z_limit
from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.place import shares
from moecheck.checks.values import MOST_UNDEFINED, is_vacuous, judge_values
from moecheck.formats import FORMATS, Float64, round_to
from moecheck.oracle import Oracle, Values
from tests.bounds import largest_z

TOL = 1e-2
Plant = Callable[[Float64], None]


@cache
def expected(dtype: str) -> Values:
    return Oracle().values(Case(op="fused_experts", dtype=dtype, num_tokens=24), None)


def judged(out: Float64, values: Values, **options: object) -> Judgement:
    return judge_values(out, values, **{"tol": TOL, "max_mismatch": None, **options})  # type: ignore[arg-type]


def made(true: list[list[float]], sigma: float | list[list[float]], rounded: list[list[float]] | None = None) -> Values:
    value = np.array(true, dtype=np.float64)
    return Values(
        true=value,
        sigma=np.broadcast_to(np.array(sigma, dtype=np.float64), value.shape).copy(),
        rounded=value if rounded is None else np.array(rounded, dtype=np.float64),
    )


def _swapped(out: Float64) -> None:
    out[[2, 5]] = out[[5, 2]]


def _times(factor: float, where: Any) -> Plant:
    def plant(out: Float64) -> None:
        out[where] *= factor

    return plant


def _set(value: float, where: Any) -> Plant:
    def plant(out: Float64) -> None:
        out[where] = value

    return plant


def _stale(out: Float64) -> None:
    out[:, 7] = out[:, 8]


PLANTED = [
    pytest.param(_set(0.0, (...,)), Verdict.FAIL, "elements", id="all zeros"),
    pytest.param(_swapped, Verdict.FAIL, "all in tokens 2, 5", id="two rows swapped"),
    pytest.param(_set(np.nan, (3, 17)), Verdict.PROVEN_WRONG, "token 3, column 17: got nan", id="one NaN"),
    pytest.param(_set(np.inf, (3, 17)), Verdict.PROVEN_WRONG, "token 3, column 17: got inf", id="one Inf"),
    pytest.param(_set(-np.inf, (3, 17)), Verdict.PROVEN_WRONG, "token 3, column 17: got -inf", id="one -Inf"),
    pytest.param(_times(1.05, (...,)), Verdict.FAIL, "elements", id="five percent too much"),
    pytest.param(_times(1.05, (slice(None), slice(0, None, 2))), Verdict.FAIL, "elements", id="every other column"),
    pytest.param(_set(0.0, (9,)), Verdict.FAIL, "all in token 9", id="one row unwritten"),
    pytest.param(_set(np.nan, (9,)), Verdict.PROVEN_WRONG, "all in token 9", id="one row poisoned"),
    pytest.param(_stale, Verdict.FAIL, "all in column 7", id="one column stale"),
    pytest.param(_times(-1.0, (...,)), Verdict.FAIL, "elements", id="sign flipped"),
    pytest.param(_times(-1.0, (4, 100)), Verdict.FAIL, "token 4, column 100", id="one sign flipped"),
]


@pytest.mark.parametrize("dtype", list(FORMATS))
@pytest.mark.parametrize(("plant", "verdict", "text"), PLANTED)
def test_a_planted_error_is_found_and_placed(dtype: str, plant: Plant, verdict: Verdict, text: str) -> None:
    values = expected(dtype)
    out = round_to(values.true, dtype)
    plant(out)
    result = judged(out, values)

    assert result.verdict is verdict
    assert text in result.message
    assert result.numbers["unexplained_ratio"] > 0
    token, column = result.where["token"], result.where["column"]
    assert out[token, column] != round_to(values.true, dtype)[token, column]


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_the_rounded_reference_passes(dtype: str) -> None:
    values = expected(dtype)

    assert judged(round_to(values.true, dtype), values).verdict is Verdict.PASS


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", list(FORMATS))
def test_honest_noise_passes(dtype: str, sign: int) -> None:
    values = expected(dtype)
    noise = sign * np.random.default_rng(3).standard_normal(values.true.shape)
    result = judged(values.true + noise * values.sigma, values)

    assert result.verdict is Verdict.PASS
    assert result.numbers["max_z"] == pytest.approx(np.abs(noise).max())


def test_the_bound_is_z_limit_times_sigma_on_either_side() -> None:
    values = made([[1.0, 2.0]], 0.25)
    edge = z_limit(2) * 0.25
    for side in (1, -1):
        assert judged(values.true + side * edge, values).verdict is Verdict.PASS
        assert judged(values.true + side * edge * (1 + 2.0**-40), values).verdict is Verdict.FAIL


def test_z_limit_grows_with_the_number_of_elements() -> None:
    assert z_limit(0) == z_limit(1) < z_limit(1000) < z_limit(1_000_000)
    assert z_limit(1000) == largest_z(1000)


@pytest.mark.parametrize("out", [-1.0, 0.0, np.nan, np.inf], ids=str)
@pytest.mark.parametrize("sigma", [np.inf, np.nan, 0.0], ids=str)
def test_a_sigma_that_explains_nothing_excuses_nothing(sigma: float, out: float) -> None:
    values = made([[1.0, 2.0]], [[sigma, 0.1]])

    assert judged(np.array([[out, 2.0]]), values).verdict in (Verdict.FAIL, Verdict.PROVEN_WRONG)
    assert judged(np.array([[1.0, 2.0]]), values).verdict is Verdict.PASS


def test_sigma_zero_requires_equality_but_not_of_the_sign_of_zero() -> None:
    values = made([[0.0, 1.0]], 0.0)

    assert judged(np.array([[-0.0, 1.0]]), values).verdict is Verdict.PASS
    assert judged(np.array([[2.0**-149, 1.0]]), values).verdict is Verdict.FAIL


def test_a_subnormal_flushed_to_zero_passes() -> None:
    values = made([[2.0**-130, 1.0]], [[2.0**-151, 0.0]])

    assert judged(np.array([[0.0, 1.0]]), values).verdict is Verdict.PASS
    assert judged(np.array([[3 * FLUSHED, 1.0]]), values).verdict is Verdict.FAIL


def test_exact_cases_allow_nothing_and_prove() -> None:
    values = made([[64.0, 2.0]], 1.0)
    result = judged(np.array([[64.0, 2.5]]), values, exact=True)

    assert judged(values.true, values, exact=True).verdict is Verdict.PASS
    assert result.verdict is Verdict.PROVEN_WRONG
    assert "token 0, column 1: got 2.5, expected 2 (this case is exact in every format)" in result.message
    assert judged(np.array([[64.0, 2.5]]), values).verdict is Verdict.PASS


def test_the_message_says_seen_expected_where() -> None:
    values = made([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], 0.01)
    out = values.true.copy()
    out[1, 0] = 7.0
    result = judged(out, values, row="row")

    assert result.message.startswith("row 1, column 0: got 7, expected 3 (rounding explains ±")
    assert result.message.endswith("Wrong: 1 element.")
    assert result.where == {"row": 1, "column": 0}


def test_the_worst_element_is_worst_against_its_own_bound() -> None:
    values = made([[1.0, 100.0]], [[0.001, 1.0]])

    assert judged(np.array([[2.0, 150.0]]), values).where == {"token": 0, "column": 0}


def test_a_mismatch_that_rounding_explains_fails_only_under_a_cap() -> None:
    values = made([[1.0, 1.0, 1.0, 1.0]], 0.1)
    out = np.array([[1.5, 1.0, 1.0, 1.0]])

    assert judged(out, values).verdict is Verdict.PASS
    assert judged(out, values).message == "25.00% of the elements exceed tol=0.01, by rounding alone."
    assert judged(out, values, max_mismatch=0.25).verdict is Verdict.PASS
    assert judged(out, values, max_mismatch=0.0).verdict is Verdict.FAIL
    assert "--max-mismatch allows 0.00%" in judged(out, values, max_mismatch=0.0).message
    assert judged(out, values, max_mismatch=float("nan")).verdict is Verdict.FAIL


def test_a_cap_never_excuses_what_rounding_does_not_explain() -> None:
    values = made([[1.0, 1.0]], 0.001)

    assert judged(np.array([[2.0, 1.0]]), values, max_mismatch=1.0, tol=100.0).verdict is Verdict.FAIL


def test_mismatches_are_counted_against_the_rounded_reference() -> None:
    values = made([[1.0, 1.0]], 0.1, rounded=[[1.25, 1.0]])

    assert judged(np.array([[1.25, 1.0]]), values, max_mismatch=0.0).verdict is Verdict.PASS
    assert judged(np.array([[1.0, 1.0]]), values, max_mismatch=0.0).verdict is Verdict.FAIL
    assert judged(np.array([[1.25, 1.0]]), values).numbers["max_diff"] == 0.0


def test_undefined_elements_are_not_judged_and_not_counted() -> None:
    true = np.ones((1, 100))
    true[0, :5] = np.nan
    values = Values(true=true, sigma=np.full(true.shape, 0.01), rounded=true)
    out = np.ones((1, 100))
    out[0, :3] = np.inf
    result = judged(out, values, max_mismatch=0.0)

    assert result.verdict is Verdict.PASS
    assert result.numbers["undefined"] == 5
    assert result.numbers["max_diff"] == 0.0
    out[0, 50] = np.nan
    assert judged(out, values).verdict is Verdict.PROVEN_WRONG


@pytest.mark.parametrize("undefined", [6, 99, 100])
def test_too_many_undefined_elements_decide_nothing(undefined: int) -> None:
    true = np.ones((1, 100))
    true[0, :undefined] = np.nan
    values = Values(true=true, sigma=np.full(true.shape, 0.01), rounded=true)

    assert undefined > MOST_UNDEFINED * true.size
    assert judged(np.ones((1, 100)), values).verdict is Verdict.INCONCLUSIVE
    if undefined < 100:
        assert judged(np.zeros((1, 100)), values).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("out", "verdict"),
    [
        pytest.param(np.inf, Verdict.PASS, id="overflow"),
        pytest.param(65504.0, Verdict.PASS, id="largest number"),
        pytest.param(-np.inf, Verdict.PROVEN_WRONG, id="other infinity"),
        pytest.param(np.nan, Verdict.PROVEN_WRONG, id="NaN"),
        pytest.param(6550.4, Verdict.FAIL, id="wrong finite number"),
    ],
)
def test_a_value_at_the_end_of_fp16_may_overflow(out: float, verdict: Verdict) -> None:
    values = made([[65510.0, 1.0]], [[10.0, 0.01]])

    assert judged(np.array([[out, 1.0]]), values, largest=FORMATS["fp16"].max_value).verdict is verdict


def test_a_value_inside_the_format_may_not_overflow() -> None:
    values = made([[60000.0, 1.0]], [[10.0, 0.01]])

    assert judged(np.array([[np.inf, 1.0]]), values, largest=65504.0).verdict is Verdict.PROVEN_WRONG
    assert judged(np.array([[np.inf, 1.0]]), made([[7e4, 1.0]], 10.0)).verdict is Verdict.PROVEN_WRONG


@pytest.mark.parametrize(
    ("out", "verdict"),
    [(np.inf, Verdict.PASS), (1.0, Verdict.PASS), (9.0, Verdict.FAIL), (-np.inf, Verdict.PROVEN_WRONG)],
    ids=["overflows as declared", "does not overflow", "wrong number", "other infinity"],
)
def test_a_declared_overflow_allows_that_infinity_only(out: float, verdict: Verdict) -> None:
    values = made([[1.0, 1.0]], 0.01, rounded=[[np.inf, 1.0]])

    assert judged(np.array([[out, 1.0]]), values).verdict is verdict


def test_zeros_are_vacuous_by_tolerance_or_by_rounding() -> None:
    assert is_vacuous(made([[0.0, 0.0]], 0.0), tol=TOL)
    assert is_vacuous(made([[0.005, -0.01]], 0.0001), tol=TOL)
    assert is_vacuous(made([[1.0, -1.0]], 1.0), tol=TOL)  # sigma as large as the signal
    assert is_vacuous(made([[np.nan, 0.0]], 0.0), tol=TOL)
    assert is_vacuous(made([[1.0, -1.0]], 0.001), tol=1.0)
    assert not is_vacuous(made([[0.0, -1.0]], 0.001), tol=TOL)
    assert not is_vacuous(made([[0.0, -1.0]], 1.0), tol=TOL, exact=True)


def test_an_output_without_elements_passes_and_is_vacuous() -> None:
    values = Values(true=np.zeros((0, 4)), sigma=np.zeros((0, 4)), rounded=np.zeros((0, 4)))

    assert judged(np.zeros((0, 4)), values).verdict is Verdict.PASS
    assert is_vacuous(values, tol=TOL)


def test_numbers_are_those_of_the_metrics() -> None:
    values = made([[3.0, -4.0]], [[0.5, 2.0]])
    numbers = judged(np.array([[3.5, -4.0]]), values).numbers

    assert numbers["max_diff"] == 0.5
    assert numbers["max_rel_diff"] == 0.5 / np.sqrt(12.5)
    assert numbers["max_z"] == 1.0
    assert numbers["rms_z"] == np.sqrt(0.5)
    assert numbers["rms_ref"] == np.sqrt(12.5)
    assert numbers["mismatch_ratio"] == 0.5
    assert numbers["undefined"] == 0.0


def test_value_bound_grows_only_with_finite_sigma() -> None:
    sigma = np.array([1.0, 2.0, 0.0, np.inf, np.nan])

    assert value_bound(sigma).tolist() == [z_limit(5) + FLUSHED, 2 * z_limit(5) + FLUSHED, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        pytest.param([(1, 2)], "1 element", id="one"),
        pytest.param([(1, 0), (1, 2)], "2 of 24 elements (8.33%), all in token 1", id="one row"),
        pytest.param([(1, 0), (2, 0), (3, 0)], "3 of 24 elements (12.50%), all in tokens 1 to 3", id="a run of rows"),
        pytest.param([(0, 0), (2, 0)], "2 of 24 elements (8.33%), all in tokens 0, 2", id="some rows"),
        pytest.param([(t, 3) for t in range(6)], "6 of 24 elements (25.00%), all in column 3", id="one column"),
        pytest.param([(t, t % 4) for t in range(6)], "6 of 24 elements (25.00%), in 6 of 6 tokens", id="everywhere"),
    ],
)
def test_places_in_words(wrong: list[tuple[int, int]], text: str) -> None:
    mask = np.zeros((6, 4), dtype=np.bool_)
    for place in wrong:
        mask[place] = True

    assert shares(mask, "token") == text


def test_many_places_are_cut_short() -> None:
    mask = np.zeros((20, 2), dtype=np.bool_)
    mask[::2] = True

    assert shares(mask, "row").endswith("all in rows 0, 2, 4, 6 and 6 more")


def test_the_output_is_not_changed() -> None:
    values = expected("bf16")
    out = round_to(values.true, "bf16")
    kept = replace(values, true=values.true.copy(), sigma=values.sigma.copy())
    copy = out.copy()
    judged(out, values)

    np.testing.assert_array_equal(out, copy)
    np.testing.assert_array_equal(values.true, kept.true)
    np.testing.assert_array_equal(values.sigma, kept.sigma)
