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
from moecheck.report.contracts import contract_lines, floor_line, odd_contract
from moecheck.report.headline import headline, kernels_by_reason, totals_line
from moecheck.report.limits import run_limits, sees_cell
from moecheck.report.results import KernelSummary, RunSummary
from moecheck.report.text import count, duration, metric, one_line, place, printable, verdict_words

INDENT = 2
SKIP_REASONS = 5  # of single cases; the report has all
CONTRACTS = 8  # distinct ones that are listed; the report has all
# Column of the table -> the width of the terminal, in characters, from which it is shown.
_COLUMNS = {
    "max diff": 0,
    "max rel diff": 98,
    "mismatch": 0,
    "worst z": 0,
    "sees": 112,
    "seconds": 128,
}
_WITH_OP = 136


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
    parts: list[RenderableType] = []
    low = floor_line(summary)
    if low:
        parts += [Text(one_line(low), style="yellow"), Text()]
    parts += [_table(tested, width=width)] if tested else []
    contracts = contract_lines(summary)
    if contracts:
        parts += [Text(), Text("Where the kernels that passed round:", style="bold")]
        parts += [indented(one_line(line)) for line in contracts[:CONTRACTS]]
        if len(contracts) > CONTRACTS:
            parts.append(indented(f"and {len(contracts) - CONTRACTS} more contracts: see the report", style="dim"))
    for kernel in tested:
        if kernel.verdict == Verdict.PASS:
            parts += [_undecided(kernel, reason, cases) for reason, cases in kernel.undecided.items()]
    for kernel in tested:
        if kernel.verdict != Verdict.PASS:
            parts += [Text(), *_block(kernel)]
    skips = list(_skips(summary))
    if skips:
        parts += [Text(), *skips]
    limits = run_limits(summary)
    if limits:
        parts += [Text(), Text(one_line(limits))]
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
    if width >= _WITH_OP:
        table.add_column("op", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("cases", justify="right", no_wrap=True)
    shown = [name for name, least in _COLUMNS.items() if width >= least]
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for kernel in kernels:
        cells = {
            "max diff": metric(kernel.max_diff),
            "max rel diff": metric(kernel.max_rel_diff),
            "mismatch": metric(kernel.mismatch_ratio),
            "worst z": metric(kernel.max_z),
            "sees": sees_cell(kernel),
            "seconds": metric(kernel.seconds),
        }
        table.add_row(
            Text(one_line(kernel.name), style=verdict_style(kernel.verdict) if kernel.failed else ""),
            *([kernel.op] if width >= _WITH_OP else []),
            verdict_text(kernel.verdict),
            kernel.tally,
            *(cells[name] for name in shown),
        )
    return table


def _block(kernel: KernelSummary) -> Iterator[RenderableType]:
    """What was seen and expected, what it looks like, where; the last line is the command that reproduces it."""
    yield Text.assemble(verdict_text(kernel.verdict), "  ", (one_line(kernel.name), "bold"), f"  {kernel.check or ''}")
    yield indented(kernel.message or "no message")
    if kernel.diagnosis:
        yield indented(kernel.diagnosis, style="bold")
    at = f"{place(kernel.where)} of case" if kernel.where else "case"
    yield indented(f"at {at} {kernel.worst_case}", style="dim")
    contract = odd_contract(kernel)
    if contract:
        yield indented(contract)
    yield unbroken(" " * INDENT + printable(kernel.reproduce or ""), style="cyan")


def _undecided(kernel: KernelSummary, reason: str, cases: int) -> RenderableType:
    """Of a kernel that passed, the cases that did not."""
    words = verdict_text(Verdict.INCONCLUSIVE)
    return Text.assemble(
        "\n", words, "  ", (one_line(kernel.name), "bold"), f"  {count(cases, 'case')}: {one_line(reason)}"
    )


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
