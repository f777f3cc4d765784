"""Prompts as lm-eval's task gsm8k (version 3.0) makes them with the sampler first_n, and the order of batches.

The first examples stand in front of every question: lm-eval's default sampler draws other ones for each question and
for each subset, so that neither shards nor repeated runs could be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .data import Question

TASK, VERSION = "gsm8k", "3.0"
UNTIL = ("Question:", "</s>", "<|im_end|>")
MAX_NEW_TOKENS = 256


def prompt_of(question: Question, shots: Sequence[Question] = ()) -> str:
    """What the model is given."""
    examples = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
    return f"{examples}Question: {question.question}\nAnswer:"


def gold_of(question: Question) -> str:
    """The continuation that teacher forcing scores, with the space that lm-eval puts before it."""
    return f" {question.answer}"


def prompt_hash(prompt: str) -> str:
    """SHA-256 as lm-eval records it in its samples."""
    return hashlib.sha256(prompt.encode("utf-8")).hexdigest()


def batches_of(prompts: Sequence[str], size: int) -> list[tuple[int, ...]]:
    """Indices of the prompts of each batch: longest first, so that a batch pads little and the largest comes first.

    A function of the prompts alone, so both arms and a resumed run have the same batches.
    """
    return batches_by([len(prompt) for prompt in prompts], size)


def batches_by(lengths: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Indices of each batch, those of the largest length first and of equal ones in their order."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [tuple(order[start : start + size]) for start in range(0, len(order), size)]
