"""The 2x2 table, McNemar's exact test and Tango's interval against brute force, closed forms and published numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from moecheck.errors import HarnessError
from moecheck.evals.statistics.interval import score, tango_interval
from moecheck.evals.statistics.paired import (
    PairedTable,
    mcnemar_mid_p,
    mcnemar_one_sided,
    mcnemar_two_sided,
    more_flips_than,
)


def table(lost: int, gained: int, n: int = 1319) -> PairedTable:
    return PairedTable(both=n - lost - gained, lost=lost, gained=gained, neither=0)


def test_the_table_counts_each_pair_once() -> None:
    found = PairedTable.of([True, True, False, False, True], [True, False, True, False, False])
    assert found == PairedTable(both=1, lost=2, gained=1, neither=1)
    assert (found.n, found.flips) == (5, 3)
    assert found.difference == pytest.approx(-1 / 5)
    with pytest.raises(HarnessError, match="not 1 and 2"):
        PairedTable.of([True], [True, False])


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 1), (5, 0), (2, 6), (4, 4)])
def test_mcnemar_is_the_share_of_sign_patterns(lost: int, gained: int) -> None:
    patterns = [sum(pattern) for pattern in itertools.product([0, 1], repeat=lost + gained)]
    worse = sum(losses >= lost for losses in patterns) / len(patterns)
    as_far = sum(max(losses, lost + gained - losses) >= max(lost, gained) for losses in patterns) / len(patterns)
    same = patterns.count(lost) / len(patterns)
    found = table(lost, gained)
    assert mcnemar_one_sided(found) == pytest.approx(worse)
    assert mcnemar_two_sided(found) == pytest.approx(as_far)
    assert mcnemar_mid_p(found) == pytest.approx(worse - same / 2)


def test_the_standard_error_is_that_of_the_mean_of_differences() -> None:
    differences = np.array([-1] * 7 + [1] * 3 + [0] * 90)
    assert table(7, 3, 100).standard_error == pytest.approx(differences.std() / math.sqrt(100))


def test_fisher_tells_many_flips_from_a_floor_of_few() -> None:
    assert more_flips_than(30, 200, 2, 200) < 1e-6
    assert more_flips_than(3, 200, 2, 200) > 0.3
    assert more_flips_than(1, 2, 0, 2) == pytest.approx(1 / 2)  # of the 4 places of one flip, 2 are in the first row


@pytest.mark.parametrize("n", [133, 200, 1319])
@pytest.mark.parametrize("level", [0.90, 0.95])
def test_without_flips_the_interval_has_its_closed_form(n: int, level: float) -> None:
    from scipy import stats

    z = stats.norm.ppf((1 + level) / 2)
    assert tango_interval(table(0, 0, n), level) == pytest.approx((-z * z / (n + z * z), z * z / (n + z * z)))


def test_two_points_are_certified_from_133_questions_on() -> None:
    assert tango_interval(table(0, 0, 133))[0] > -0.02 > tango_interval(table(0, 0, 132))[0]


def test_a_published_example_of_21_pairs() -> None:
    """Airway reactivity before and after transplantation (1, 1; 7, 12): Fagerland et al. 2014, Tango's interval."""
    lower, upper = tango_interval(PairedTable(both=1, lost=7, gained=1, neither=12), 0.95)
    assert (round(lower, 3), round(upper, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(10, 0, 1319), (7, 1, 21), (40, 20, 160), (3, 5, 50), (0, 4, 30), (30, 1, 32)]
)
def test_the_bounds_are_roots_of_the_published_quartic(lost: int, gained: int, n: int) -> None:
    """Yang, Sun and Hardin (Statistics in Medicine 32, 2013): squaring the score equation gives a quartic in d."""
    from scipy import stats

    g, b, c = stats.norm.ppf(0.95) ** 2, gained, lost
    quartic = [
        n**2 * (n / g + 1) ** 2,
        -n * (b - c) * (n / g + 1) * (4 * n / g + 1),
        2 * n * (b - c) ** 2 * (3 * n / g + 2) / g - n**2 * ((b + c) / g + 1),
        n * (b - c) * (2 * (b + c) / g + 1) - (b - c) ** 3 * (4 * n / g + 1) / g,
        (b - c) ** 2 * ((b - c) ** 2 / g - (b + c)) / g,
    ]
    roots = np.roots(quartic)
    for bound in tango_interval(table(lost, gained, n)):
        assert np.abs(roots - bound).min() < 1e-6


def test_the_score_uses_the_most_likely_rate_of_losses() -> None:
    """Most likely: q maximises gained ln(q + d) + lost ln q + rest ln(1 - 2 q - d); its derivative times all three
    arguments is a polynomial, and one of its roots leaves all three positive.
    """
    lost, gained, n, d = 9, 4, 60, -0.15
    moved, plain, kept = np.poly1d([1, d]), np.poly1d([1, 0]), np.poly1d([-2, 1 - d])
    derivative = gained * plain * kept + lost * moved * kept - 2 * (n - lost - gained) * moved * plain
    (best,) = [q for q in derivative.roots if min(moved(q), plain(q), kept(q)) > 0]
    expected = (gained - lost - n * d) / math.sqrt(n * (2 * best + d * (1 - d)))
    assert score(table(lost, gained, n), d) == pytest.approx(expected)


def test_the_interval_mirrors_when_the_arms_are_swapped() -> None:
    lower, upper = tango_interval(table(9, 4, 60))
    assert tango_interval(table(4, 9, 60)) == pytest.approx((-upper, -lower))


@pytest.mark.parametrize(("lost", "gained"), [(5, 0), (0, 5)])
def test_the_interval_reaches_the_end_of_its_range(lost: int, gained: int) -> None:
    lower, upper = tango_interval(table(lost, gained, 5))
    assert (lower == -1.0, upper == 1.0) == (lost == 5, gained == 5)


def test_an_interval_needs_questions() -> None:
    with pytest.raises(HarnessError, match="n=0"):
        tango_interval(table(0, 0, 0))
