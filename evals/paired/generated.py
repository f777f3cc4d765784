"""Greedy answers of an arm to all questions, batch by batch, by our own loop or through lm-eval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moecheck.errors import HarnessError
from moecheck.evals.backends.backend import Backend
from moecheck.evals.backends.records import Generation
from moecheck.evals.gsm8k.answers import Answer, scored_answer
from moecheck.evals.gsm8k.lm_eval_task import HarnessResult, evaluate
from moecheck.evals.gsm8k.prompts import UNTIL

from .settings import Settings
from .watcher import Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFiles:
    """Where lm-eval reads the task from: JSON lines of the questions and of the examples."""

    test: Path
    shots: Path | None


def generate(
    arm: Backend, settings: Settings, watcher: Watcher, batches: Iterable[Sequence[int]] | None = None
) -> dict[int, Generation]:
    """Question index -> answer, over `batches` (by default all)."""
    found: dict[int, Generation] = {}
    for batch in settings.batches if batches is None else batches:
        found.update(answer_batch(arm, settings, batch))
        watcher.step(len(batch))
    return found


def answer_batch(arm: Backend, settings: Settings, batch: Sequence[int]) -> dict[int, Generation]:
    """One batch, as one call."""
    prompts = [settings.prompts[index] for index in batch]
    answers = arm.generate(prompts, until=UNTIL, max_new_tokens=settings.max_new_tokens)
    if len(answers) != len(batch):
        raise HarnessError(f"{arm.fingerprint.arm} gave {len(answers)} answers to {len(batch)} prompts.")
    return dict(zip(batch, answers, strict=True))


def generate_through_lm_eval(
    arm: Backend, settings: Settings, files: TaskFiles, watcher: Watcher
) -> tuple[dict[int, Generation], HarnessResult]:
    """The same answers, asked for by lm-eval, with its own scores. Raises HarnessError where these are not ours."""
    index_of = {prompt: index for index, prompt in enumerate(settings.prompts)}
    found: dict[int, Generation] = {}

    def done(prompts: Sequence[str], answers: Sequence[Generation]) -> None:
        for prompt, answer in zip(prompts, answers, strict=True):
            if prompt not in index_of:
                raise HarnessError(f"lm-eval asked what moecheck does not: {prompt[-80:]!r}.")
            found[index_of[prompt]] = answer
        watcher.step(len(prompts))

    result = evaluate(
        arm,
        test=files.test,
        shots=files.shots,
        num_fewshot=len(settings.shots),
        limit=len(settings.questions),
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        done=done,
    )
    for index, prompt in enumerate(settings.prompts):
        if index not in found:  # the same prompt as another question's
            found[index] = found[index_of[prompt]]
    for sample, answer in zip(result.samples, scored(settings, found), strict=True):
        ours = (answer.prompt_hash, answer.score.strict_right, answer.score.flexible_right)
        if ours != (sample.prompt_hash, sample.strict_right, sample.flexible_right):
            raise HarnessError(f"question {sample.doc_id}: lm-eval and moecheck score an answer differently.")
    return found, result


def generate_otherwise(
    arm: Backend, settings: Settings, watcher: Watcher, batches: Sequence[Sequence[int]]
) -> dict[int, Generation]:
    """The questions of `batches` again in batches of about two thirds the size: an arm's own noise."""
    members = sorted(index for batch in batches for index in batch)
    size = max(1, (2 * settings.batch_size) // 3)
    return generate(arm, settings, watcher, settings.batched(members, size))


def scored(settings: Settings, generations: dict[int, Generation]) -> list[Answer]:
    """The answers with their scores, in the order of the questions."""
    return [
        scored_answer(settings.questions[index], settings.prompts[index], generations[index])
        for index in sorted(generations)
    ]
