"""A finished run in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from io import StringIO
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moecheck.checks.finding import FAILURES, Verdict
from moecheck.report.headline import headline, kernels_by_reason, totals_line
from moecheck.report.results import KernelSummary, RunSummary
from moecheck.report.text import count, duration, metric, one_line, place, printable, verdict_words

INDENT = 2
SKIP_REASONS = 5  # of single cases; the report has all
_WIDE, _MEDIUM = 124, 98  # columns of text from which the table shows everything, or all but the op


def render(view: RenderableType, *, width: int, color: bool) -> str:
    """A view as text, with ANSI colours or without; commands are never broken over lines."""
    file = StringIO()
    system: Literal["standard"] | None = "standard" if color else None
    console = Console(file=file, width=width, force_terminal=color, color_system=system, highlight=False)
    console.print(view, crop=False)
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


def run_view(summary: RunSummary, *, width: int, report: str | None = None) -> RenderableType:
    """The table of kernels with failures last, a block per failure, skips, and the totals with the `report` path."""
    tested = [kernel for kernel in summary.kernels if kernel.verdict != Verdict.SKIP]
    parts: list[RenderableType] = [_table(tested, width=width)] if tested else []
    for kernel in tested:
        if kernel.verdict != Verdict.PASS:
            parts += [Text(), *_block(kernel)]
    skips = list(_skips(summary))
    if skips:
        parts += [Text(), *skips]
    failed = any(kernel.failed for kernel in tested)
    parts += [Text(), Text(headline(summary), style="bold red" if failed else "bold")]
    parts.append(Text(f"{totals_line(summary)} · {duration(summary.seconds)}"))
    if report:
        parts.append(unbroken(f"Report: {printable(report)}"))
    return Group(*parts)


def verdict_text(verdict: Verdict) -> Text:
    """Symbol and words in the verdict's colour."""
    return Text(verdict_words(verdict), style=verdict_style(verdict), no_wrap=True)


def verdict_style(verdict: Verdict) -> str:
    """The colour of a verdict."""
    if verdict in FAILURES:
        return "bold red"
    return {Verdict.PASS: "green", Verdict.SKIP: "dim"}.get(verdict, "yellow")


def unbroken(text: str, style: str = "") -> Text:
    """A line that is never wrapped nor cut, so that it can be copied."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def indented(text: str, style: str = "") -> Padding:
    """A wrapped paragraph, indented."""
    return Padding(Text(printable(text), style=style, overflow="fold"), (0, 0, 0, INDENT))


def _table(kernels: list[KernelSummary], *, width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("kernel", overflow="fold", min_width=12)
    if width >= _WIDE:
        table.add_column("op", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("cases", justify="right", no_wrap=True)
    names = ("max diff", "max rel diff", "mismatch", "worst z", "seconds")
    shown = names if width >= _MEDIUM else ("max diff", "mismatch", "worst z")
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for kernel in kernels:
        metrics = (kernel.max_diff, kernel.max_rel_diff, kernel.mismatch_ratio, kernel.max_z, kernel.seconds)
        cells = {name: metric(value) for name, value in zip(names, metrics, strict=True)}
        table.add_row(
            Text(one_line(kernel.name), style=verdict_style(kernel.verdict) if kernel.failed else ""),
            *([kernel.op] if width >= _WIDE else []),
            verdict_text(kernel.verdict),
            kernel.tally,
            *(cells[name] for name in shown),
        )
    return table


def _block(kernel: KernelSummary) -> Iterator[RenderableType]:
    """What was seen, what was expected, where; the last line is the command that reproduces it."""
    yield Text.assemble(verdict_text(kernel.verdict), "  ", (one_line(kernel.name), "bold"), f"  {kernel.check or ''}")
    yield indented(kernel.message or "no message")
    at = f"{place(kernel.where)} of case" if kernel.where else "case"
    yield indented(f"at {at} {kernel.worst_case}", style="dim")
    if kernel.diagnosis:
        yield indented(f"looks like: {kernel.diagnosis}")
    yield unbroken(" " * INDENT + printable(kernel.reproduce or ""), style="cyan")


def _skips(summary: RunSummary) -> Iterator[RenderableType]:
    for reason, names in kernels_by_reason(summary).items():
        yield Text(f"Skipped {count(len(names), 'kernel')}: {one_line(reason)}", style="dim")
        yield indented(", ".join(map(one_line, names)), style="dim")
    cases: Counter[str] = Counter()
    for kernel in summary.kernels:
        if kernel.verdict != Verdict.SKIP:
            cases.update(kernel.skip_reasons)
    if cases:
        yield Text(f"Skipped {count(cases.total(), 'case')} of the kernels above, most often because:", style="dim")
    for reason, number in cases.most_common(SKIP_REASONS):
        yield indented(f"{number:4} {one_line(reason)}", style="dim")
    if len(cases) > SKIP_REASONS:
        yield indented(f"     and {len(cases) - SKIP_REASONS} more reasons: see the report", style="dim")
