"""One kernel x case in a terminal, with all that is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moecheck.checks.finding import Finding
from moecheck.formats import Float64
from moecheck.report.evidence import HELD, RELATIONS
from moecheck.report.limits import sees_words
from moecheck.report.picture import ErrorPicture, coarsen
from moecheck.report.results import KernelSummary, Measured
from moecheck.report.summarise import CASE, case_verdict
from moecheck.report.terminal import INDENT, indented, unbroken, verdict_text
from moecheck.report.text import count, metric, one_line, percent, place, printable

MAX_ROWS = 32
MAX_COLUMNS = 128
# |out - ref| / allowed up to these values, and above the last.
LEVELS = ((0.5, "·"), (1.0, "░"), (10.0, "▒"), (100.0, "▓"))
ABOVE = "█"


def replay_view(
    findings: Sequence[Finding],
    *,
    width: int,
    picture: ErrorPicture | None = None,
    reproduce: str | None = None,
    kernel: KernelSummary | None = None,
) -> RenderableType:
    """One kernel x case: its findings, their numbers, the worst elements and a heat map of the error.

    kernel: its summary over this case alone, for what a pass is worth.
    """
    closing = case_verdict(findings)
    parts: list[RenderableType] = [
        Text.assemble(verdict_text(closing.verdict), "  ", (one_line(closing.kernel), "bold")),
        indented(f"case {closing.case}"),
        Text(),
    ]
    said = {finding.message for finding in findings if finding.check != CASE}
    for finding in findings:
        if finding.check != CASE or finding.message not in said:
            parts += _finding(finding)
    if picture is not None:
        parts += _picture(picture, width=width)
    limits = sees_words(kernel) if kernel else None
    if limits:
        parts += [Text(), Text(limits)]
    if reproduce:
        parts += [Text(), unbroken(printable(reproduce), style="cyan")]
    return Group(*parts)


def picture_view(picture: ErrorPicture, *, width: int) -> RenderableType:
    """How many elements are wrong, the worst of them, and a heat map of the error."""
    return Group(*_picture(picture, width=width))


def heat_map(excess: Float64, rows: int, columns: int) -> list[str]:
    """Lines of blocks, one a cell. excess: [t, h] float64, |out - ref| / allowed; each cell shows its largest."""
    cells = coarsen(excess, rows, columns)
    symbols = np.array([symbol for _, symbol in LEVELS] + [ABOVE])
    return ["".join(line) for line in symbols[np.searchsorted([level for level, _ in LEVELS], cells, side="left")]]


def _finding(finding: Finding) -> Iterator[RenderableType]:
    yield Text.assemble(verdict_text(finding.verdict), "  ", (one_line(finding.check), "bold"))
    if finding.message:
        yield indented(finding.message)
    if finding.where:
        yield indented(f"at {place(finding.where)}")
    if finding.limits:
        yield Padding(_judged(finding), (0, 0, 0, INDENT))
    rest = {name: value for name, value in finding.metrics.items() if name not in finding.limits}
    if rest:
        yield indented("  ".join(f"{name}={metric(value)}" for name, value in rest.items()), style="dim")
    if finding.check == RELATIONS:
        yield from _relations(finding)


def _judged(finding: Finding) -> Table:
    """Each number that has a limit, against it."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("statistic")
    for name in ("value", "limit", "of limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, limit in finding.limits.items():
        measured = Measured(name=name, value=finding.numbers[name], limit=limit, case=finding.case)
        style = "red" if not measured.share <= 1 else ""
        table.add_row(name, metric(measured.value), metric(limit), percent(measured.share), style=style)
    return table


def _relations(finding: Finding) -> Iterator[RenderableType]:
    """Which relations held, and why others were not tried."""
    held = [name for name, fact in finding.facts.items() if fact == HELD]
    if held:
        yield indented(f"held: {', '.join(held)}", style="dim")
    for name, fact in finding.facts.items():
        if fact != HELD:
            yield indented(f"{name} {fact}", style="dim")


def _picture(picture: ErrorPicture, *, width: int) -> Iterator[RenderableType]:
    total = picture.shape[0] * picture.shape[1]
    wrong = f"{count(picture.wrong, 'element')} of {total:,} above the bound ({picture.wrong / total:.2%})"
    yield from (Text(), Text(wrong, style="bold"))
    if picture.worst:
        yield from (Text(), _worst(picture))
    label = max(len(str(picture.shape[0] - 1)), len(picture.axes[0])) + 1
    lines = heat_map(picture.excess, MAX_ROWS, min(MAX_COLUMNS, width - label - 1))
    yield from (
        Text(),
        Text(f"{picture.axes[0]:>{label - 1}} {picture.axes[1]} 0 to {picture.shape[1] - 1}", style="dim"),
    )
    for index, line in enumerate(lines):
        row = index * picture.shape[0] // len(lines)
        text = unbroken(f"{row:>{label - 1}} {line}")
        text.highlight_regex(r"[▒▓█]+", "red")
        yield text
    legend = "  ".join(f"{symbol} ≤ {level:g}" for level, symbol in LEVELS)
    yield Text(f"largest |out - ref| / allowed of each cell, above 1 is wrong:\n{legend}  {ABOVE} more", style="dim")


def _worst(picture: ErrorPicture) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (*picture.axes, "got", "expected", "error", "allowed"):
        table.add_column(name, justify="right", overflow="fold")
    for element in picture.worst:
        table.add_row(
            str(element.row),
            str(element.column),
            f"{element.got:.6g}",
            f"{element.expected:.6g}",
            metric(element.error),
            metric(element.allowed),
        )
    return table
