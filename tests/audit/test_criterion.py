"""Criteria against numbers worked out by hand, and against torch's own comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moecheck.audit import Criterion
from moecheck.audit.formulas import calc_diff, cosine, relative_l2
from moecheck.errors import UsageError
from moecheck.formats import Float64

REF = np.array([[4.0, -4.0, 0.0, 1.0]])
HALF_AND_QUARTER = Criterion(atol=0.5, rtol=0.25)  # allows 1.5, 1.5, 0.5 and 0.75


def accepts(criterion: Criterion, out: Float64, ref: Float64 = REF) -> bool:
    return criterion.accepts((out,), (ref,))


def moved(column: int, by: float) -> Float64:
    out = REF.copy()
    out[0, column] += by
    return out


@pytest.mark.parametrize(("x", "y"), [([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0])])
def test_formulas_of_arrays_that_differ_in_one_sign(x: list[float], y: list[float]) -> None:
    out, ref = np.array(x), np.array(y)  # <x, y> = 2, both squares are 4, |x - y| = 2
    assert calc_diff(out, ref) == 1 - 2 * 2 / 8
    assert cosine(out, ref) == 2 / 4
    assert relative_l2(out, ref) == 2 / 2


def test_formulas_at_their_ends() -> None:
    ref = np.array([3.0, -4.0])
    assert (calc_diff(ref, ref), cosine(ref, ref), relative_l2(ref, ref)) == (0.0, 1.0, 0.0)
    assert (calc_diff(-ref, ref), cosine(-ref, ref), relative_l2(-ref, ref)) == (2.0, -1.0, 2.0)
    # A factor of 2: 1 - 2 * 50 / (100 + 25) = 1 / 5, and the cosine sees nothing.
    assert (cosine(2 * ref, ref), relative_l2(2 * ref, ref)) == (1.0, 1.0)
    assert math.isclose(calc_diff(2 * ref, ref), 1 / 5)
    zeros = np.zeros(2)
    assert all(math.isnan(formula(zeros, zeros)) for formula in (calc_diff, cosine, relative_l2))


@pytest.mark.parametrize(("column", "room"), [(0, 1.5), (1, 1.5), (2, 0.5), (3, 0.75)])
def test_an_element_may_be_off_by_atol_and_rtol_times_the_reference(column: int, room: float) -> None:
    assert HALF_AND_QUARTER.room(REF)[0, column] == room
    for sign in (1, -1):
        assert accepts(HALF_AND_QUARTER, moved(column, sign * room))
        assert not accepts(HALF_AND_QUARTER, moved(column, sign * room * (1 + 2.0**-40)))


def test_a_tolerance_relative_to_the_output_grows_with_it() -> None:
    relative = Criterion(rtol=0.5, relative_to="output")
    assert accepts(relative, np.array([[2.0]]), np.array([[1.0]]))  # |d| = 1 = 0.5 * 2
    assert not accepts(Criterion(rtol=0.5), np.array([[2.0]]), np.array([[1.0]]))
    assert not accepts(relative, np.array([[0.0]]), np.array([[1.0]]))  # zeros get no room at all


def test_a_share_of_the_elements_must_match() -> None:
    three_of_four = moved(0, 100.0)
    assert accepts(Criterion(atol=0.5, share=0.75), three_of_four)
    assert not accepts(Criterion(atol=0.5, share=0.76), three_of_four)


def test_a_tolerance_may_be_a_share_of_the_largest_reference() -> None:
    quarter = Criterion(atol_of_max=0.25)  # of 4
    assert accepts(quarter, moved(2, 1.0))
    assert not accepts(quarter, moved(2, 1.0 + 2.0**-40))


def test_either_tolerance_is_enough_where_a_test_says_so() -> None:
    either = Criterion(atol=0.5, rtol=0.25, either=True)
    assert accepts(either, moved(0, 0.75))  # 0.75 <= 0.25 * 4
    assert accepts(either, moved(2, 0.5))  # 0.5 <= 0.5
    assert not accepts(either, moved(0, 1.25))  # which their sum would allow
    assert not accepts(either, moved(2, 0.75))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(value: float) -> None:
    out = moved(3, value)
    assert not accepts(Criterion(atol=100.0), out)
    assert accepts(Criterion(atol=100.0, share=0.75), out)
    assert not accepts(Criterion(atol=100.0, share=0.75, not_finite="reject"), out)
    assert accepts(Criterion(atol=100.0, not_finite="ignored"), out)
    for criterion in (Criterion(max_abs=1e9), Criterion(max_calc_diff=2.0), Criterion(max_relative_l2=1e9)):
        assert not accepts(criterion, out)
    assert not accepts(Criterion(min_cosine=-1.0), out)


def test_global_limits_are_kept_exactly() -> None:
    out, ref = np.array([[1.0, 1.0, 1.0, 1.0]]), np.array([[1.0, 1.0, 1.0, -1.0]])
    for name, value in (("max_calc_diff", 0.5), ("max_relative_l2", 1.0), ("max_abs", 2.0)):
        assert accepts(Criterion(**{name: value}), out, ref)  # type: ignore[arg-type]  # limits are numbers
        assert not accepts(Criterion(**{name: value * (1 - 2.0**-40)}), out, ref)  # type: ignore[arg-type]  # as above
    assert accepts(Criterion(min_cosine=0.5), out, ref)
    assert not accepts(Criterion(min_cosine=0.5 + 2.0**-40), out, ref)
    assert not accepts(Criterion(atol=2.0, max_calc_diff=0.25), out, ref)  # all parts must hold


@pytest.mark.parametrize("criterion", [Criterion(max_calc_diff=0.02), Criterion(min_cosine=0.99)])
def test_the_relative_size_of_a_global_limit_is_that_of_an_error_at_the_limit(criterion: Criterion) -> None:
    """An error of norm r at right angles has calc_diff r^2 / (2 + r^2) and 1 - cosine = 1 - 1 / sqrt(1 + r^2)."""
    size = criterion.relative_size
    assert size is not None
    for factor, inside in ((1.0, True), (1.02, False)):  # the formulas are r^2 / 2 but for r^4
        out = np.array([[1.0, factor * size]])
        assert accepts(criterion, out, np.array([[1.0, 0.0]])) is inside


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("atol", "rtol"), [(2e-2, 0.0), (1e-2, 1e-1), (0.0, 1e-2)])
def test_elementwise_criteria_agree_with_torch(seed: int, atol: float, rtol: float) -> None:
    rng = np.random.default_rng(seed)
    for size in (1e-3, 5e-3, 2e-2):
        ref = rng.standard_normal((3, 5))
        out = ref + size * rng.standard_normal((3, 5))
        expected = torch.allclose(torch.from_numpy(out), torch.from_numpy(ref), atol=atol, rtol=rtol)
        assert accepts(Criterion(atol=atol, rtol=rtol), out, ref) is expected
        matched = float(
            torch.isclose(torch.from_numpy(out), torch.from_numpy(ref), atol=atol, rtol=rtol).double().mean()
        )
        if matched:
            assert accepts(Criterion(atol=atol, rtol=rtol, share=matched), out, ref)
        if matched < 1:
            assert not accepts(Criterion(atol=atol, rtol=rtol, share=matched + 1 / 16), out, ref)


def test_ids_of_a_router() -> None:
    weights, ids = np.array([[0.5, 0.5]]), np.array([[3, 1]], np.int32)
    turned = ids[:, ::-1]
    exact, as_sets, unchecked = (Criterion(atol=0.1, ids=rule) for rule in ("exact", "sorted", "unchecked"))
    assert exact.accepts((weights, ids), (weights, ids))
    assert not exact.accepts((weights, turned), (weights, ids))
    assert as_sets.accepts((weights, turned), (weights, ids))
    assert not as_sets.accepts((weights, ids + 1), (weights, ids))
    assert unchecked.accepts((weights, ids + 1), (weights, ids))
    for criterion in (exact, as_sets, unchecked):
        assert not criterion.accepts((weights, ids.astype(np.float32)), (weights, ids))
        assert not criterion.accepts((weights + 1, ids), (weights, ids))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({}, "needs a tolerance", id="nothing"),
        pytest.param({"atol": -1.0}, "atol=-1.0 must be", id="negative"),
        pytest.param({"atol": math.nan}, "atol=nan must be", id="NaN"),
        pytest.param({"max_calc_diff": math.inf}, "max_calc_diff=inf", id="infinite"),
        pytest.param({"atol": 1.0, "share": 0.0}, "share=0.0 must lie above 0", id="no share"),
        pytest.param({"atol": 1.0, "share": 1.5}, "share=1.5 must lie above 0", id="too large a share"),
        pytest.param({"max_abs": 1.0, "share": 0.5}, "share=0.5 needs atol or rtol", id="share of nothing"),
        pytest.param({"min_cosine": 1.1}, "min_cosine=1.1", id="cosine"),
        pytest.param({"atol": 1.0, "either": True}, "either=True needs both", id="either of one"),
        pytest.param({"atol": 1.0, "ids": "exakt"}, "Did you mean 'exact'?", id="rule for ids"),
    ],
)
def test_a_criterion_that_makes_no_sense_is_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("?", r"\?")):
        Criterion(**fields)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (Criterion(atol=2e-2, rtol=0.0), "|d| <= 0.02"),
        (Criterion(atol=0.0, rtol=0.0), "|d| <= 0"),
        (Criterion(atol=0.1, rtol=0.85, share=0.925), "|d| <= 0.1 + 0.85 |ref| in 92.5 % of the elements"),
        (Criterion(rtol=0.1, relative_to="output"), "|d| <= 0.1 |out|"),
        (Criterion(max_calc_diff=1e-3, min_cosine=0.99), "calc_diff <= 0.001, cosine >= 0.99"),
        (Criterion(atol=1e-2, rtol=1e-2, either=True), "|d| <= 0.01 or |d| <= 0.01 |ref|"),
    ],
)
def test_a_criterion_in_words(criterion: Criterion, words: str) -> None:
    assert criterion.words() == words
