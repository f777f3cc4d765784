"""The embedded models' text: how a problem is written down, and the tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = Path(__file__).with_name("tokenizer.json")
SEPARATOR = "\n\n"
END = "<|endoftext|>"
MOST_TOKENS = 320  # of an answer; those of the test set have fewer


def as_prompt(question: str) -> str:
    """As the gsm8k task of lm-eval asks: its delimiter, one space, belongs to the answer."""
    return f"Question: {question}\nAnswer:"


def as_document(question: str, answer: str) -> str:
    """A prompt with its answer, as an example stands in front of a question."""
    return f"{as_prompt(question)} {answer}"


@cache
def own_tokenizer() -> Tokenizer:
    """The tokenizer that all embedded models share."""
    from tokenizers import Tokenizer  # part of the extra `e2e`

    return Tokenizer.from_file(str(TOKENIZER))
