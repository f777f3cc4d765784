"""The questions and examples of a run: shipped ones, a file of the user's, or the hub's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moecheck.cli.e2e import Options
from moecheck.errors import UsageError
from moecheck.evals.gsm8k.data import Question, hub_file, read_questions
from moecheck.evals.gsm8k.lm_eval_task import available
from moecheck.evals.paired.generated import TaskFiles

SHOTS = 5  # of gsm8k as lm-eval has it


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """questions, shots: what is asked, and the examples. words: where from. files: for lm-eval.

    real: not the generated ones, so that flexible-extract decides. harness: lm-eval where it is installed.
    """

    questions: Sequence[Question]
    shots: Sequence[Question]
    words: str
    files: TaskFiles
    real: bool

    @property
    def harness(self) -> str:
        return "lm-eval" if available() else "own"


def task_data(options: Options, *, embedded: bool) -> TaskData:
    """Read the data. Raises UsageError for a bad file, for too few examples, and without a network for the hub's."""
    test, shots, words = _files(options, embedded=embedded)
    questions = read_questions(test, limit=options.limit)
    wanted = options.few_shot
    if wanted is None:
        wanted = 0 if embedded and options.data is None else SHOTS if shots is not None else 0
    if wanted and shots is None:
        raise UsageError(f"--few-shot {wanted} needs examples: give --shots FILE, such as gsm8k's train.jsonl.")
    examples = read_questions(shots, limit=wanted) if wanted and shots is not None else []
    if len(examples) < wanted:
        raise UsageError(f"{shots} has {len(examples)} examples, and --few-shot asks for {wanted}.")
    return TaskData(
        questions=questions,
        shots=examples,
        words=words,
        files=TaskFiles(test=test, shots=shots if examples else None),
        real=not (embedded and options.data is None),
    )


def _files(options: Options, *, embedded: bool) -> tuple[Path, Path | None, str]:
    """Questions, examples (None if there are none), and words for the report."""
    given = None if options.shots is None else Path(options.shots)
    if options.data is not None:
        test = Path(options.data)
        beside = test.with_name("train.jsonl")
        return test, given or (beside if beside.exists() and beside != test else None), f"data {test.name}"
    if embedded:
        from moecheck.evals import problems

        return problems.held_out(), given or problems.few_shot(), "generated problems, held out"
    cache = Path.home() / ".cache" / "moecheck"
    return hub_file("test", cache), given or hub_file("train", cache), "gsm8k of the hub"
