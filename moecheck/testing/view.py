"""A judged call in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from moecheck.checks.finding import FAILURES, Verdict
from moecheck.report.replay import picture_view
from moecheck.report.terminal import indented, verdict_text
from moecheck.report.text import one_line

from .examine import Examined
from .words import numbers, reason


def examined_view(examined: Examined, name: str, *, width: int, kernel: str = "", note: str = "") -> RenderableType:
    """The verdict, what was judged, why, what it looks like and the numbers; for a failure also where the error is.

    name: of the file or test. kernel, note: what the one who captured it said.
    """
    said = f"  {one_line(kernel)}" if kernel else ""
    parts: list[RenderableType] = [Text.assemble(verdict_text(examined.verdict), "  ", (one_line(name), "bold"), said)]
    parts.append(indented(examined.given.words(), style="dim"))
    parts += [indented(one_line(note), style="dim")] if note else []
    for judgement in examined.judged.judgements:
        if judgement.message or judgement.verdict is not Verdict.PASS:
            parts.append(indented(reason(judgement)))
    parts += [indented(examined.limit)] if examined.limit else []
    parts += [indented(examined.diagnosis, style="bold")] if examined.diagnosis else []
    if examined.numbers:
        parts.append(indented(numbers(examined), style="dim"))
    picture = examined.picture(name) if examined.verdict in FAILURES else None
    if picture is not None:
        parts.append(picture_view(picture, width=width))
    return Group(*parts)
