"""Scores of hypotheses, and fitted factors with their standard errors."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.diagnosis.evidence import LARGEST_Z, Evidence, fit_factor, score, z_of
from moecheck.formats import Float64
from moecheck.mutants.call import Prediction


def row(*values: float) -> Float64:
    return np.array([values], dtype=np.float64)


@pytest.mark.parametrize(
    ("out", "value", "sigma", "z"),
    [
        pytest.param(3.0, 1.0, 0.5, 4.0, id="a distance in standard deviations"),
        pytest.param(1.0, 1.0, 0.0, 0.0, id="exact and equal"),
        pytest.param(1.1, 1.0, 0.0, LARGEST_Z, id="exact and different"),
        pytest.param(1e-40, 0.0, 0.0, 0.0, id="flushed to zero"),
        pytest.param(1e30, 0.0, 1.0, LARGEST_Z, id="wild"),
        pytest.param(np.nan, 1.0, 1.0, LARGEST_Z, id="NaN where a number is right"),
        pytest.param(np.inf, np.nan, 1.0, 0.0, id="not finite, as predicted"),
        pytest.param(1.0, np.nan, 1.0, LARGEST_Z, id="a number where NaN is predicted"),
        pytest.param(np.inf, np.inf, 1.0, 0.0, id="the same infinity"),
        pytest.param(-np.inf, np.inf, 1.0, LARGEST_Z, id="the other infinity"),
    ],
)
def test_z(out: float, value: float, sigma: float, z: float) -> None:
    assert z_of(row(out), Prediction(row(value), row(sigma)))[0, 0] == z


def test_a_score_counts_judged_elements_only() -> None:
    reference = Prediction(row(0.0, 0.0, 0.0, 0.0), row(1.0, 1.0, 1.0, 1.0))
    judged = np.array([[True, True, True, False]])
    evidence = Evidence(out=row(1.0, -2.0, np.nan, 1e9), reference=reference, rounded=reference.value, judged=judged)
    found = score(evidence, reference)

    assert (found.unlike, found.elements, found.max_z) == (1, 3, 2.0)
    assert found.rms_z == pytest.approx(np.sqrt(2.5))
    assert not found.explains


def test_a_factor_and_its_error() -> None:
    """Over many draws the fitted factor scatters as its standard error says, errors being shared along a row."""
    rng = np.random.default_rng(0)
    basis, sigma = rng.normal(size=(64, 32)), np.full((64, 32), 0.1)
    standardised = []
    for _ in range(300):
        shared = rng.normal(size=(64, 1)) * np.sign(basis)
        fit = fit_factor(1.2 * basis + 0.1 * shared, basis, sigma, np.ones((64, 32), dtype=np.bool_))
        assert fit is not None
        standardised.append((fit.factor - 1.2) / fit.error)
    assert 0.8 < np.std(standardised) < 1.25


def test_without_signal_no_factor() -> None:
    nothing = np.zeros((2, 2))
    assert fit_factor(nothing, nothing, np.ones((2, 2)), np.ones((2, 2), dtype=np.bool_)) is None


def test_one_row_is_not_trusted() -> None:
    """The residuals of a fit add up to nothing in its only row."""
    basis = np.linspace(1, 2, 64)[None]
    fit = fit_factor(1.001 * basis, basis, 0.01 * basis, np.ones((1, 64), dtype=np.bool_))
    assert fit is not None
    assert fit.error == pytest.approx(6 * 0.01 / 8)


def test_rows_without_signal_do_not_make_one_row_trusted() -> None:
    basis = np.zeros((64, 64))
    basis[5] = np.linspace(1, 2, 64)
    sigma = np.full((64, 64), 0.01)
    fit = fit_factor(1.001 * basis, basis, sigma, np.ones((64, 64), dtype=np.bool_))
    assert fit is not None
    assert fit.error == pytest.approx(6 * 0.01 / np.sqrt(np.square(basis).sum()))
