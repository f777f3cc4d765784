"""What decides about a run's numbers, beside the model and its arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from moecheck.evals.backends.backend import ScoredPair
from moecheck.evals.backends.records import Precision
from moecheck.evals.gsm8k.data import Question
from moecheck.evals.gsm8k.prompts import MAX_NEW_TOKENS, batches_by, gold_of, prompt_of

Harness = Literal["own", "lm-eval"]
# Rows in a call of a replayed layer: 65 and 129 cross the edges of tiles of 64 and 128, 1 is the smallest decode.
PLANS: tuple[tuple[str, int | None, int | None], ...] = (
    ("whole", None, None),
    ("129 tokens a call", 129, 258),
    ("65 tokens a call", 65, 130),
    ("1 token a call", 1, 6),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """questions, shots: what is asked, and the examples in front. data: where from, in words.

    precision: what the candidate declares to compute in. margin: drop of accuracy that is accepted. seed: of the
    choice of questions for signals 1 to 3. captured, forced, floor_questions: questions for signals 1 and 3, for
    signal 2, and for the legal variants' texts.
    """

    questions: Sequence[Question]
    data: str
    shots: Sequence[Question] = ()
    batch_size: int = 65
    max_new_tokens: int = MAX_NEW_TOKENS
    precision: Precision = "bf16"
    margin: float = 0.02
    seed: int = 0
    captured: int = 4
    forced: int = 64
    floor_questions: int = 128
    early_stop: bool = False
    harness: Harness = "own"

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        return tuple(prompt_of(question, self.shots) for question in self.questions)

    @cached_property
    def batches(self) -> list[tuple[int, ...]]:
        """Indices of the questions of each batch of generation; with early stopping in a random order.

        Questions with gold answers of about the same length share a batch, whose rows then end at about the same step.
        """
        if not self.early_stop:
            return self.batched(range(len(self.questions)), self.batch_size)
        order = [int(index) for index in np.random.default_rng(self.seed).permutation(len(self.questions))]
        return [tuple(order[start : start + self.batch_size]) for start in range(0, len(order), self.batch_size)]

    @cached_property
    def floor_batches(self) -> list[tuple[int, ...]]:
        """Some of `batches`, with about floor_questions in all: the same composition as in the arms.

        The middle ones of as many equal parts: neither only the longest answers nor only the shortest.
        """
        batches = self.batches
        wanted = max(1, min(len(batches), -(-self.floor_questions // self.batch_size)))
        return [batches[(2 * index + 1) * len(batches) // (2 * wanted)] for index in range(wanted)]

    def batched(self, members: Sequence[int], size: int) -> list[tuple[int, ...]]:
        """These questions in batches of `size`, those with the longest gold answers first."""
        lengths = [len(self.questions[index].answer) for index in members]
        return [tuple(members[place] for place in batch) for batch in batches_by(lengths, size)]

    @cached_property
    def sample(self) -> tuple[int, ...]:
        """Indices of questions for signals 1 to 3, in a random order that `seed` decides."""
        order = np.random.default_rng([self.seed, 1]).permutation(len(self.questions))
        return tuple(int(index) for index in order[: max(self.captured, self.forced)])

    def pair(self, index: int) -> ScoredPair:
        """Prompt and gold answer of one question."""
        return self.prompts[index], gold_of(self.questions[index])
