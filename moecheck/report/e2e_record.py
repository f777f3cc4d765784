"""What e2e.json says of a paired run, for views that need no more than NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moecheck.report.strict_json import number

OUTCOMES = {"pass": ("good", "✔ pass"), "fail": ("bad", "✘ fail"), "inconclusive": ("unsure", "? inconclusive")}
ABSENT = ("soft", "- none")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRow:
    """One signal: outcome, the number that decided, its limit, the same number of legal variants, and all numbers."""

    name: str
    outcome: str
    message: str
    value: float | None
    limit: float | None
    floor: float | None
    numbers: dict[str, float]

    @property
    def tone(self) -> str:
        return OUTCOMES.get(self.outcome, ABSENT)[0]

    @property
    def words(self) -> str:
        return OUTCOMES.get(self.outcome, ABSENT)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """Answers by one filter: right in both arms, lost by the candidate, gained by it, wrong in both."""

    name: str
    both: int
    lost: int
    gained: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.lost + self.gained + self.neither

    def share(self, arm: str) -> tuple[float, float]:
        """Share of right answers of `baseline` or `candidate`, and its standard error with n - 1, as lm-eval has it."""
        right = self.both + (self.lost if arm == "baseline" else self.gained)
        mean = right / self.n if self.n else math.nan
        return mean, math.sqrt(mean * (1 - mean) / (self.n - 1)) if self.n > 1 else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A question whose strictly judged answer changed. kind: `lost` or `gained`."""

    question: str
    gold: str
    kind: str
    baseline: str
    candidate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class E2eRecord:
    """A paired run. baseline, candidate: the arms in words. throughput: arm -> name of a number -> number."""

    command: str
    started: str
    seconds: float
    git: str | None
    model: str
    data: str
    few_shot: int
    asked: int
    answered: int
    harness: str
    margin: float
    baseline: str
    candidate: str
    outcome: str
    reason: str
    notes: tuple[str, ...]
    signals: tuple[SignalRow, ...]
    squares: tuple[Square, ...]
    changed: tuple[Changed, ...]
    throughput: dict[str, dict[str, float]]
    lm_eval: dict[str, str]

    @property
    def tone(self) -> str:
        return OUTCOMES.get(self.outcome, ABSENT)[0]

    @property
    def words(self) -> str:
        return OUTCOMES.get(self.outcome, ABSENT)[1]

    @property
    def name(self) -> str:
        """`model · candidate`: what later runs of the same kind have in common."""
        return f"{self.model} · {self.candidate}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> E2eRecord:
        """Of e2e.json; raises KeyError, TypeError, AttributeError or ValueError for other data."""
        return cls(
            command=str(data["command"]),
            started=str(data["started"]),
            seconds=number(data["seconds"]),
            git=None if data["git"] is None else str(data["git"]),
            model=str(data["facts"]["name"]),
            data=str(data["data"]),
            few_shot=int(data["few_shot"]),
            asked=int(data["asked"]),
            answered=len(data["pairs"]),
            harness=str(data["harness"]),
            margin=number(data["margin"]),
            baseline=str(data["baseline"]["arm"]),
            candidate=str(data["candidate"]["arm"]),
            outcome=str(data["verdict"]["outcome"]),
            reason=str(data["verdict"]["reason"]),
            notes=tuple(map(str, data["notes"])),
            signals=tuple(_signal(entry) for entry in data["signals"]),
            squares=tuple(
                Square(name=str(name), **{key: int(table[key]) for key in ("both", "lost", "gained", "neither")})
                for name, table in data["tables"].items()
            ),
            changed=tuple(change for pair in data["pairs"] if (change := _changed(*pair)) is not None),
            throughput={
                str(arm): {str(name): number(value) for name, value in numbers.items()}
                for arm, numbers in data["throughput"].items()
            },
            lm_eval={str(arm): str(table) for arm, table in data["lm_eval"].items()},
        )


def _signal(data: Mapping[str, Any]) -> SignalRow:
    values = {name: None if data[name] is None else number(data[name]) for name in ("value", "limit", "floor")}
    return SignalRow(
        name=str(data["name"]),
        outcome=str(data["outcome"]),
        message=str(data["message"]),
        numbers={str(name): number(value) for name, value in data["numbers"].items()},
        **values,
    )


def _changed(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> Changed | None:
    before, after = (bool(answer["score"]["strict_right"]) for answer in (baseline, candidate))
    if before == after:
        return None
    return Changed(
        question=str(baseline["question"]["question"]),
        gold=str(baseline["question"]["answer"]).rpartition("#### ")[2],
        kind="lost" if before else "gained",
        baseline=str(baseline["generation"]["text"]),
        candidate=str(candidate["generation"]["text"]),
    )
