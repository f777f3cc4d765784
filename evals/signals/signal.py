"""What one signal says: its outcome, the number that decided, and the limit that it was held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """Of a signal, and of the whole run (never `absent` there)."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One of the five. name: short and fixed. outcome: ABSENT where the backend cannot give it.

    message: one sentence for people. value: the number that decided, limit: what it was held against, floor: the
    largest (or least, for shares) of it among the legal variants; None where there is none. numbers: what else was
    measured, by the name of its formula.
    """

    name: str
    outcome: Outcome
    message: str
    value: float | None = None
    limit: float | None = None
    floor: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


def absent(name: str, reason: str) -> Signal:
    """A signal that this backend cannot give."""
    return Signal(name=name, outcome=Outcome.ABSENT, message=reason)
