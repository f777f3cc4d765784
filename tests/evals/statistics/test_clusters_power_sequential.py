"""Clustered errors, sign flips, power and e-processes against brute force and closed forms."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from moecheck.errors import HarnessError
from moecheck.evals.statistics.clusters import clustered_standard_error, mean_test, sign_flip_test
from moecheck.evals.statistics.paired import PairedTable, mcnemar_one_sided
from moecheck.evals.statistics.power import RESOLUTION, mcnemar_power, minimal_detectable_drop, normal_detectable_drop
from moecheck.evals.statistics.sequential import FAIL_AT, PASS_AT, NotWorseEvidence, worse_evidence


def test_clusters_of_one_give_the_plain_error() -> None:
    values = [-1, 0, 1, 0, -1, -1]
    assert clustered_standard_error(values, range(6)) == pytest.approx(np.std(values) / math.sqrt(6))


def test_copies_of_a_question_add_nothing() -> None:
    values = [-1, 0, 1, 0, -1]
    alone = clustered_standard_error(values, range(5))
    assert clustered_standard_error(values * 4, list(range(5)) * 4) == pytest.approx(alone)


def test_the_sign_flip_test_is_the_share_of_all_flips() -> None:
    differences, clusters = [-1, -1, 1, -1, 0, 1, -1, -1, -1], [0, 0, 0, 1, 1, 2, 3, 3, 4]
    sums = [sum(d for d, c in zip(differences, clusters, strict=True) if c == k) for k in range(5)]
    totals = [sum(s * x for s, x in zip(signs, sums, strict=True)) for signs in itertools.product([1, -1], repeat=5)]
    assert sign_flip_test(differences, clusters) == pytest.approx(sum(t <= sum(sums) for t in totals) / 32)


def test_without_clusters_sign_flips_are_mcnemar() -> None:
    differences = [-1] * 9 + [1] * 2 + [0] * 30
    table = PairedTable(both=30, lost=9, gained=2, neither=0)
    assert sign_flip_test(differences, range(len(differences))) == pytest.approx(mcnemar_one_sided(table))


def test_losses_of_one_template_alone_are_no_proof() -> None:
    """Seven losses in a row: 1/128 where they are independent, 1/2 where they are one template's."""
    assert sign_flip_test([-1] * 7, range(7)) == pytest.approx(1 / 128)
    assert sign_flip_test([-1] * 7, [0] * 7) == pytest.approx(1 / 2)


def test_as_many_clusters_as_differences() -> None:
    with pytest.raises(HarnessError, match="2 differences"):
        sign_flip_test([1, -1], [0])


def test_the_t_of_groups_is_students() -> None:
    from scipy import stats

    values = [0.3, -0.1, 0.7, 0.2, 0.4]
    expected = stats.ttest_1samp(values, 0.0)
    found = mean_test(values)
    assert found.t == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)
    assert mean_test([0.5, 0.5]).p == 0.0
    assert mean_test([0.0, 0.0]).p == 1.0
    assert math.isnan(mean_test([0.5]).p)


def test_the_power_is_that_of_every_outcome_of_a_small_run() -> None:
    n, drop, rate, alpha = 12, 0.4, 0.1, 0.05
    p_lost, p_gained = rate / 2 + drop, rate / 2
    power = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            chance = math.comb(n, lost) * math.comb(n - lost, gained) * p_lost**lost * p_gained**gained
            chance *= (1 - p_lost - p_gained) ** (n - lost - gained)
            table = PairedTable(both=n - lost - gained, lost=lost, gained=gained, neither=0)
            power += chance * (mcnemar_one_sided(table) <= alpha)
    assert mcnemar_power(n, drop, rate, alpha=alpha) == pytest.approx(power)


def test_the_least_drop_is_found_as_often_as_asked() -> None:
    drop = minimal_detectable_drop(1319, 0.02, alpha=0.05)
    assert drop is not None
    less, more = (mcnemar_power(1319, drop + step, 0.02, alpha=0.05) for step in (-RESOLUTION, RESOLUTION))
    assert less < 0.8 < more
    # The approximation leaves out that the drop itself flips questions, and that the test is discrete.
    assert normal_detectable_drop(1319, 0.02) < drop < 1.4 * normal_detectable_drop(1319, 0.02)


def test_five_questions_find_nothing_at_one_percent() -> None:
    assert minimal_detectable_drop(5, 0.0) is None
    assert minimal_detectable_drop(0, 0.0) is None


@pytest.mark.parametrize("lost", [0, 1, 7, 30])
def test_the_evidence_without_gains_has_its_closed_form(lost: int) -> None:
    assert worse_evidence(lost, 0) == pytest.approx((2 ** (lost + 1) - 1) / (lost + 1))


def test_the_evidence_is_the_mean_over_all_p() -> None:
    """With t = 2 p it is the integral of t^9 (2 - t)^3 from 1 to 2, in fractions."""
    terms = {9: 8, 10: -12, 11: 6, 12: -1}  # t^9 (2 - t)^3
    mean = sum(Fraction(factor * (2 ** (power + 1) - 1), power + 1) for power, factor in terms.items())
    assert worse_evidence(9, 3) == pytest.approx(float(mean))


def test_the_evidence_is_fair_under_the_null() -> None:
    """Its mean over one more fair flip is what it was: nobody gains by looking."""
    assert (worse_evidence(6, 3) + worse_evidence(5, 4)) / 2 == pytest.approx(worse_evidence(5, 3))


def test_extreme_counts_stay_finite() -> None:
    assert worse_evidence(5000, 0) > FAIL_AT
    assert worse_evidence(0, 5000) < 1


def test_no_flip_over_250_questions_certifies_two_points() -> None:
    evidence = NotWorseEvidence(0.02)
    assert evidence.add([0] * 150) < PASS_AT < evidence.add([0] * 100)


def test_a_drop_of_the_margin_is_a_fair_game_for_every_bet() -> None:
    """At difference -1 with chance `margin` and 0 otherwise the mean of the next wealth is the wealth."""
    margin, history = 0.02, [0, 0, -1, 0, 1, 0]
    wealth = NotWorseEvidence(margin).add(history)
    after = [NotWorseEvidence(margin).add([*history, step]) for step in (0, -1)]
    assert (1 - margin) * after[0] + margin * after[1] == pytest.approx(wealth)
