"""Metrics by hand; they are total: NaN and infinities give a number or count as mismatches."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck import metrics
from moecheck.formats import Float64

NAN, INF = float("nan"), float("inf")


def array(*values: float) -> Float64:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("out", "ref", "wanted"),
    [
        pytest.param(array(1, 2, -4), array(1.5, 2, -1), 3.0, id="the largest of several"),
        pytest.param(array(-3), array(2), 5.0, id="out below ref"),
        pytest.param(array(2), array(-3), 5.0, id="out above ref"),
        pytest.param(array(NAN, 1), array(1, 1), INF, id="NaN out"),
        pytest.param(array(1), array(NAN), INF, id="NaN ref"),
        pytest.param(array(NAN), array(NAN), 0.0, id="two NaN"),
        pytest.param(array(INF, -INF), array(INF, -INF), 0.0, id="equal infinities"),
        pytest.param(array(-INF), array(INF), INF, id="other infinity"),
        pytest.param(array(1), array(INF), INF, id="finite for an infinity"),
        pytest.param(array(-0.0), array(0.0), 0.0, id="signed zeros"),
        pytest.param(array(), array(), 0.0, id="empty"),
    ],
)
def test_max_diff(out: Float64, ref: Float64, wanted: float) -> None:
    assert metrics.max_diff(out, ref) == wanted


@pytest.mark.parametrize(
    ("out", "ref", "wanted"),
    [
        pytest.param(array(3, 5), array(3, -3), 8 / 3, id="against the root mean square"),
        pytest.param(array(0, 0), array(0, 0), 0.0, id="all zero"),
        pytest.param(array(1), array(0), INF, id="zero reference"),
        pytest.param(array(NAN), array(1), INF, id="NaN"),
        pytest.param(array(), array(), 0.0, id="empty"),
    ],
)
def test_max_rel_diff(out: Float64, ref: Float64, wanted: float) -> None:
    assert metrics.max_rel_diff(out, ref) == wanted


@pytest.mark.parametrize(
    ("out", "ref", "tol", "wanted"),
    [
        pytest.param(array(1.5, 3.25, 0.5), array(1, 2, 0), 0.5, 0.0, id="on and below the edge"),
        pytest.param(array(2.125, 3, 0), array(1, 2, 0), 0.5, 1 / 3, id="one beyond"),
        pytest.param(array(-2.125), array(-1), 0.5, 1.0, id="negative reference"),
        pytest.param(array(0.0), array(1.0), 0.5, 0.0, id="tol counts twice at 1"),
        pytest.param(array(NAN, 0), array(0, 0), 0.5, 0.5, id="NaN out"),
        pytest.param(array(NAN), array(INF), 0.5, 1.0, id="NaN for an infinity"),
        pytest.param(array(7), array(INF), 0.5, 1.0, id="finite for an infinity"),
        pytest.param(array(-INF), array(INF), 0.5, 1.0, id="other infinity"),
        pytest.param(array(INF), array(INF), 0.5, 0.0, id="equal infinities"),
        pytest.param(array(NAN), array(0), INF, 1.0, id="NaN under an infinite tol"),
        pytest.param(array(NAN), array(NAN), 0.5, 1.0, id="two NaN"),
        pytest.param(array(0), array(0), NAN, 0.0, id="equal under a NaN tol"),
        pytest.param(array(1), array(0), NAN, 1.0, id="unequal under a NaN tol"),
        pytest.param(array(0), array(0), 0.0, 0.0, id="equal under tol 0"),
        pytest.param(array(), array(), 0.5, 0.0, id="empty"),
    ],
)
def test_mismatch_ratio(out: Float64, ref: Float64, tol: float, wanted: float) -> None:
    assert metrics.mismatch_ratio(out, ref, tol) == wanted


@pytest.mark.parametrize(
    ("values", "wanted"),
    [(array(3, -4, 0, 0), 2.5), (array(NAN, INF, -2), 2.0), (array(NAN), 0.0), (array(), 0.0)],
    ids=["finite", "only the finite ones", "none finite", "empty"],
)
def test_rms(values: Float64, wanted: float) -> None:
    assert metrics.rms(values) == wanted
