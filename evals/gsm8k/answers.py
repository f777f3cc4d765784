"""Answers of two arms, scored and paired question by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecheck.errors import UsageError
from moecheck.evals.backends.records import Generation

from .data import Question
from .prompts import prompt_hash
from .scorer import Score, score_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One arm's answer to one question."""

    question: Question
    prompt_hash: str
    generation: Generation
    score: Score


def scored_answer(question: Question, prompt: str, generation: Generation) -> Answer:
    """With its score by both filters."""
    return Answer(
        question=question,
        prompt_hash=prompt_hash(prompt),
        generation=generation,
        score=score_answer(generation.text, question.answer),
    )


def pair_answers(baseline: Sequence[Answer], candidate: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """The answers to the same questions, by doc_id, in order.

    Raises UsageError where an arm answered a question twice, where the arms answered different questions, or the same
    question under different prompts: such answers are no pairs.
    """
    arms = {"baseline": baseline, "candidate": candidate}
    tables = {}
    for name, answers in arms.items():
        tables[name] = {answer.question.doc_id: answer for answer in answers}
        if len(tables[name]) != len(answers):
            raise UsageError(f"The {name} answered a question twice; its results cannot be paired.")
    one, two = tables.values()
    for name, others in (("candidate", one.keys() - two.keys()), ("baseline", two.keys() - one.keys())):
        if others:
            raise UsageError(f"The {name} has no answer to question {min(others)}; only the same questions compare.")
    pairs = [(one[doc_id], two[doc_id]) for doc_id in sorted(one)]
    for left, right in pairs:
        if left.prompt_hash != right.prompt_hash:
            raise UsageError(
                f"The arms were given different prompts for question {left.question.doc_id}; run both with the same "
                "--few-shot and --shots."
            )
    return pairs
