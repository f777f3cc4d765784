"""Scores of an answer by lm-eval's rules for gsm8k, without lm-eval.

Source: lm_eval/tasks/gsm8k/gsm8k.yaml, version 3.0, of lm-eval 0.4.13: filters strict-match and flexible-extract,
metric exact_match. A test holds both implementations against each other, text by text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

INVALID = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """strict, flexible: what each filter extracts, `[invalid]` for nothing; *_right: whether it is the gold number."""

    strict: str
    flexible: str
    strict_right: bool
    flexible_right: bool


def score_answer(text: str, gold: str) -> Score:
    """Of a model's text against the gold answer (with its steps)."""
    strict, flexible = strict_match(text), flexible_extract(text)
    return Score(
        strict=strict,
        flexible=flexible,
        strict_right=_exact_match(strict, gold),
        flexible_right=_exact_match(flexible, gold),
    )


def strict_match(text: str) -> str:
    """The first number after `#### `."""
    found = _STRICT.findall(text)
    return str(found[0]).strip() if found else INVALID


def flexible_extract(text: str) -> str:
    """The last thing that looks like a number."""
    found = _FLEXIBLE.findall(text)
    return next(part for part in found[-1] if part).strip() if found else INVALID


def _exact_match(prediction: str, gold: str) -> bool:
    for pattern in _IGNORED:
        prediction, gold = pattern.sub("", prediction), pattern.sub("", gold)
    return prediction.lower() == gold.lower()
