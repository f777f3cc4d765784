"""Both arms batch by batch in a random order of questions, until the evidence decides."""

from __future__ import annotations

from dataclasses import dataclass

from moecheck.evals.backends.backend import Backend
from moecheck.evals.backends.records import Generation
from moecheck.evals.gsm8k.scorer import score_answer
from moecheck.evals.statistics.sequential import FAIL_AT, PASS_AT, NotWorseEvidence, worse_evidence

from .generated import answer_batch
from .settings import Settings
from .watcher import Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """baseline, candidate: answers by question index, of the same questions. outcome: `fail`, `pass`, or None where the
    questions ran out. worse, not_worse: the evidence at the end.
    """

    baseline: dict[int, Generation]
    candidate: dict[int, Generation]
    outcome: str | None
    worse: float
    not_worse: float


def until_decided(
    baseline: Backend, candidate: Backend, settings: Settings, watcher: Watcher, *, flexible: bool
) -> Stopped:
    """Ask both arms until e-processes say `worse` (at 1 %) or `not worse by the margin` (at 5 %).

    The bounds hold at every moment, so that looking after each batch costs nothing; they take the questions, in the
    random order that the seed decides, as independent.
    """
    one: dict[int, Generation] = {}
    two: dict[int, Generation] = {}
    lost = gained = 0
    not_worse = NotWorseEvidence(settings.margin)
    outcome = None
    for batch in settings.batches:
        one.update(answer_batch(baseline, settings, batch))
        two.update(answer_batch(candidate, settings, batch))
        watcher.step(2 * len(batch))
        right = [
            [_right(arm[index], settings.questions[index].answer, flexible) for arm in (one, two)] for index in batch
        ]
        lost += right.count([True, False])
        gained += right.count([False, True])
        not_worse.add(int(after) - int(before) for before, after in right)
        if worse_evidence(lost, gained) >= FAIL_AT:
            outcome = "fail"
        elif not_worse.value >= PASS_AT:
            outcome = "pass"
        if outcome is not None:
            break
    return Stopped(
        baseline=one,
        candidate=two,
        outcome=outcome,
        worse=worse_evidence(lost, gained),
        not_worse=not_worse.value,
    )


def _right(answer: Generation, gold: str, flexible: bool) -> bool:
    score = score_answer(answer.text, gold)
    return score.flexible_right if flexible else score.strict_right
