"""A run, or one case of it, in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Literal

from rich.console import Console, Group, RenderableType

from moecheck.checks.finding import Finding
from moecheck.report.picture import ErrorPicture
from moecheck.report.results import RunSummary


def render(view: RenderableType, *, width: int, color: bool) -> str:
    """A view as text, with ANSI colours or without; commands are never broken over lines."""
    file = StringIO()
    system: Literal["standard"] | None = "standard" if color else None
    console = Console(file=file, width=width, force_terminal=color, color_system=system, highlight=False)
    console.print(view, crop=False)
    return file.getvalue()


def run_view(summary: RunSummary, *, width: int, report: str | None = None) -> RenderableType:
    """The table of kernels with failures last, a block per failure, skips, and the totals with the `report` path."""
    return Group()


def replay_view(
    findings: Sequence[Finding], *, width: int, picture: ErrorPicture | None = None, reproduce: str | None = None
) -> RenderableType:
    """One kernel x case: its findings, their numbers, the worst elements and a heat map of the error."""
    return Group()
