"""Signal 5 and the verdict: what decides, and what must not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from moecheck.evals.backends.records import Evidence
from moecheck.evals.signals.accuracy import AccuracyNumbers, accuracy, numbers_of
from moecheck.evals.signals.signal import Outcome, Signal, absent
from moecheck.evals.signals.verdict import missing_evidence, verdict
from moecheck.evals.statistics.paired import PairedTable
from tests.evals.signals.layers import FACTS

PASS, FAIL, UNSURE, ABSENT = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.ABSENT


def answers(lost: int, gained: int, n: int = 1319, solved: float = 0.92) -> tuple[list[bool], list[bool]]:
    both = round(n * solved) - lost
    pairs = [(True, True)] * both + [(True, False)] * lost + [(False, True)] * gained
    pairs += [(False, False)] * (n - len(pairs))
    return [one for one, _ in pairs], [two for _, two in pairs]


def numbers(lost: int, gained: int, n: int = 1319, solved: float = 0.92) -> AccuracyNumbers:
    return numbers_of(*answers(lost, gained, n, solved))


@pytest.mark.parametrize(
    ("lost", "gained", "n", "outcome"),
    [
        pytest.param(8, 8, 1319, PASS, id="as many gained as lost"),
        pytest.param(0, 0, 133, PASS, id="no flip on the fewest questions"),
        pytest.param(0, 0, 100, UNSURE, id="no flip on too few"),
        pytest.param(15, 5, 1319, UNSURE, id="the seed's numbers with 20 flips, margin 1 point"),
        pytest.param(40, 5, 1319, FAIL, id="a drop"),
        pytest.param(7, 0, 20, FAIL, id="seven in a row"),
        pytest.param(6, 0, 20, UNSURE, id="six in a row"),
    ],
)
def test_accuracy(lost: int, gained: int, n: int, outcome: Outcome) -> None:
    signal = accuracy(numbers(lost, gained, n), margin=0.01 if lost == 15 else 0.02)
    assert signal.outcome is outcome
    assert "found 4 times of 5" in signal.message


def test_a_model_that_solves_nothing_cannot_get_worse() -> None:
    signal = accuracy(numbers(0, 0, 1319, solved=0.0), margin=0.02)
    assert signal.outcome is UNSURE
    assert "must solve 10 %" in signal.message


def test_losses_of_few_templates_are_not_independent() -> None:
    base, cand = answers(14, 0, 400)
    alone = numbers_of(base, cand)
    both = sum(one and two for one, two in zip(base, cand, strict=True))
    clusters = [index if index < both or index >= both + 14 else -1 - (index - both) // 2 for index in range(400)]
    paired = numbers_of(base, cand, clusters=clusters)
    assert alone.p < 1e-4
    assert paired.clustered_p == pytest.approx(2**-7)
    assert paired.interval[0] < alone.interval[0]
    few = numbers_of(base, cand, clusters=[0] * 400)
    assert few.clustered_p is None  # one template cannot decide, so McNemar does
    assert accuracy(few, margin=0.02).outcome is FAIL


def test_more_flips_than_the_baseline_has_against_itself() -> None:
    null = PairedTable(both=1200, lost=2, gained=3, neither=114)
    assert (numbers_of(*answers(30, 28), null=null).flips_p or 1) < 1e-6
    n, null_n = 1319, null.n  # 6 flips here and 5 there: the share of the 11 flips' places with 6 or more of them here
    places = [math.comb(n, here) * math.comb(null_n, 11 - here) for here in range(12)]
    assert numbers_of(*answers(3, 3), null=null).flips_p == pytest.approx(sum(places[6:]) / sum(places))


def test_too_few_questions_are_said_to_show_nothing() -> None:
    assert "no drop would be found" in accuracy(numbers(0, 0, 5), margin=0.02).message


def test_an_early_stop_decides() -> None:
    assert accuracy(numbers(6, 0, 60), margin=0.02, stopped="fail").outcome is FAIL
    assert accuracy(numbers(0, 0, 60), margin=0.02, stopped="pass").outcome is PASS


def signals(**outcomes: Outcome) -> list[Signal]:
    names = {
        "parts": "component attribution",
        "kl": "teacher-forced divergence",
        "router": "router agreement",
        "texts": "identical texts",
        "accuracy": "accuracy",
    }
    return [Signal(name=name, outcome=outcomes.get(key, ABSENT), message=key) for key, name in names.items()]


@pytest.mark.parametrize(
    ("outcomes", "expected", "deciding"),
    [
        ({"parts": PASS, "kl": PASS, "router": PASS, "texts": PASS, "accuracy": PASS}, PASS, None),
        ({"parts": PASS, "kl": PASS, "router": PASS, "texts": PASS, "accuracy": UNSURE}, PASS, None),
        ({"parts": FAIL, "kl": FAIL, "router": PASS, "texts": FAIL, "accuracy": PASS}, FAIL, "component attribution"),
        ({"parts": PASS, "kl": PASS, "router": FAIL, "texts": UNSURE, "accuracy": PASS}, FAIL, "router agreement"),
        ({"parts": PASS, "kl": PASS, "router": PASS, "texts": PASS, "accuracy": FAIL}, FAIL, "accuracy"),
        ({"parts": UNSURE, "kl": PASS, "texts": PASS, "accuracy": PASS}, UNSURE, "component attribution"),
        ({"kl": PASS, "texts": PASS, "accuracy": UNSURE}, PASS, None),
        ({"texts": PASS, "accuracy": PASS}, PASS, "identical texts"),
        ({"texts": UNSURE, "accuracy": PASS}, UNSURE, "identical texts"),
        ({"accuracy": PASS}, UNSURE, "accuracy"),
        ({}, UNSURE, "accuracy"),
    ],
)
def test_precedence(outcomes: Mapping[str, Outcome], expected: Outcome, deciding: str | None) -> None:
    found = verdict(signals(**outcomes), missing=None)
    assert (found.outcome, found.deciding) == (expected, deciding)
    assert found.exit_code == {PASS: 0, FAIL: 1, UNSURE: 4}[expected]


def test_what_else_failed_is_told() -> None:
    reason = verdict(signals(kl=FAIL, router=FAIL, texts=PASS), missing=None).reason
    assert reason == "Teacher-forced divergence: kl. Failed as well: router agreement."


def test_without_evidence_no_number_counts() -> None:
    for outcome in (PASS, FAIL):
        found = verdict(signals(parts=outcome, kl=outcome, texts=outcome), missing="it was never called")
        assert found.outcome is UNSURE
        assert "never called" in found.reason


@pytest.mark.parametrize(
    ("calls", "watermark", "words"),
    [
        ({1: 3, 2: 3}, {1: True, 2: True}, None),
        ({1: 3}, {1: True, 2: True}, "never called in layer 2"),
        ({1: 3, 2: 3}, {1: True, 2: False}, "in layer 2 changed nothing"),
        ({1: 3, 2: 3}, {}, "in layer 1, 2 changed nothing"),
    ],
)
def test_evidence(calls: dict[int, int], watermark: dict[int, bool], words: str | None) -> None:
    found = missing_evidence(Evidence(calls=calls, watermark=watermark), FACTS)
    assert found is None if words is None else words in (found or "")


def test_an_absent_signal_says_why() -> None:
    assert absent("router agreement", "a server").message == "a server"
