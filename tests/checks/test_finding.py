"""The verdict of one run from those of its checks."""

from __future__ import annotations

import pytest

from moecheck.checks.finding import Judgement, Verdict, verdict_of

PASS, FAIL, PROVEN = Verdict.PASS, Verdict.FAIL, Verdict.PROVEN_WRONG
VACUOUS, INCONCLUSIVE, SKIP = Verdict.VACUOUS, Verdict.INCONCLUSIVE, Verdict.SKIP


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        pytest.param([PASS, PASS], PASS, id="all pass"),
        pytest.param([PASS, VACUOUS, FAIL], FAIL, id="a failure counts whatever else there is"),
        pytest.param([FAIL, PROVEN, FAIL], PROVEN, id="the worst failure"),
        pytest.param([PASS, VACUOUS], VACUOUS, id="a vacuous run is no pass"),
        pytest.param([INCONCLUSIVE, PASS], INCONCLUSIVE, id="an undecided run is no pass"),
        pytest.param([INCONCLUSIVE, SKIP, VACUOUS], SKIP, id="what was skipped showed nothing"),
        pytest.param([], INCONCLUSIVE, id="nothing was judged"),
    ],
)
def test_the_verdict_of_a_run(verdicts: list[Verdict], expected: Verdict) -> None:
    assert verdict_of(Judgement(check="values", verdict=verdict) for verdict in verdicts) is expected
