"""A finished paired run in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moecheck.evals.paired.result import RunResult
from moecheck.evals.signals.signal import Outcome
from moecheck.report.text import one_line

from .tables import number
from .views import WORDS, facts_line

STYLES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.INCONCLUSIVE: "yellow", Outcome.ABSENT: "dim"}


def run_view(result: RunResult, *, report: str) -> RenderableType:
    """Signals, the verdict and where the report is."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("signal", "", "value", "limit", "what was seen"):
        table.add_column(name, justify="right" if name in ("value", "limit") else "left", overflow="fold")
    for signal in result.signals:
        table.add_row(
            signal.name,
            Text(WORDS[signal.outcome], style=STYLES[signal.outcome]),
            number(signal.value),
            number(signal.limit),
            one_line(signal.message),
        )
    outcome = result.verdict.outcome
    words = Text(f"{WORDS[outcome]}: ", style=STYLES[outcome])
    return Group(
        Text(f"{result.candidate.arm} against {result.baseline.arm}"),
        Text(one_line(facts_line(result)), style="dim"),
        table,
        *(Text(note, style="yellow") for note in result.notes),
        words + Text(one_line(result.verdict.reason), style="default"),
        Text(f"report: {report}"),
    )
