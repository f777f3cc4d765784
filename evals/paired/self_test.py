"""Does the end-to-end check see what it should: each known bug in the candidate, and right arms beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moecheck.evals.backends.backend import Model
from moecheck.evals.backends.records import Arm
from moecheck.evals.signals.signal import Outcome

from .journal import Journal
from .model_run import run_model
from .settings import Settings
from .watcher import Watcher

QUESTIONS = 128
WORDS = {Outcome.PASS: "✔", Outcome.FAIL: "✘", Outcome.INCONCLUSIVE: "?", Outcome.ABSENT: "-"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestRow:
    """One arm. outcomes: of the five signals. expected: whether it must fail."""

    name: str
    expected: Outcome
    found: Outcome
    deciding: str
    message: str
    outcomes: tuple[Outcome, ...]

    @property
    def as_expected(self) -> bool:
        return self.found is self.expected


def self_test(model: Model, settings: Settings, *, journal: Journal, watcher: Watcher) -> list[SelfTestRow]:
    """The model's bugs at the settings' precision, after the right arms; fewer questions than a run has."""
    few = replace(settings, questions=settings.questions[:QUESTIONS], forced=32, floor_questions=64)
    chosen = getattr(model, "self_test_mutants", model.mutants)()
    arms = [(arm.words, arm, Outcome.PASS) for arm in model.variants(settings.precision)]
    arms += [(name, Arm(precision=settings.precision, mutant=name), Outcome.FAIL) for name in chosen]
    rows = []
    with watcher.phase("self-test", len(arms)):
        for name, arm, expected in arms:
            result = run_model(model, arm, few, journal=journal, watcher=Watcher())
            rows.append(
                SelfTestRow(
                    name=name,
                    expected=expected,
                    found=result.verdict.outcome,
                    deciding=result.verdict.deciding or "",
                    message=result.verdict.reason,
                    outcomes=tuple(signal.outcome for signal in result.signals),
                )
            )
            watcher.step()
    return rows


def self_test_view(rows: Sequence[SelfTestRow]) -> RenderableType:
    """The table, and how many were as they should be."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("candidate", "parts", "KL", "router", "texts", "accuracy", "verdict", "what was seen"):
        table.add_column(name, overflow="fold")
    for row in rows:
        style = "" if row.as_expected else "bold red"
        marks = [WORDS[outcome] for outcome in row.outcomes]
        table.add_row(row.name, *marks, Text(row.found.value, style=style), row.message)
    bugs = [row for row in rows if row.expected is Outcome.FAIL]
    right = [row for row in rows if row.expected is Outcome.PASS]
    caught, passed = sum(row.as_expected for row in bugs), sum(row.as_expected for row in right)
    return Group(table, Text(f"{caught} of {len(bugs)} bugs caught, {passed} of {len(right)} right arms passed"))
