"""A run of `moecheck bench` in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from moecheck.bench.entry import Bench, Entry
from moecheck.report.bench import COLUMNS, cells, groups, limits_words
from moecheck.report.text import count, one_line

STYLES = {"wrong": "red", "failed": "red", "timed": ""}
TOLD = 60  # characters of a reason in the table; bench.md has all of it


def bench_view(bench: Bench, *, report: str) -> RenderableType:
    """The devices' limits, a table for each layer, the kernels that were skipped, and where the report is."""
    parts: list[RenderableType] = [Text(limits_words(limits)) for limits in bench.limits.values()]
    for title, entries in groups(bench.entries):
        shown = [entry for entry in entries if entry.status != "skipped"]
        if shown:
            parts += [Text(), Text(title, style="bold"), _table(shown)]
    skipped = sorted({entry.kernel for entry in bench.entries if entry.status == "skipped"} | bench.skipped.keys())
    if skipped:
        parts += [Text(), Text(f"Not run on some or all layers, for reasons in bench.md: {', '.join(skipped)}")]
    wrong = [entry for entry in bench.entries if entry.status == "wrong"]
    timed = sum(entry.status == "timed" for entry in bench.entries)
    parts += [Text(), Text(f"{count(timed, 'time')}, {count(len(wrong), 'wrong result')}; baseline {bench.baseline}")]
    parts += [Text(f"Report: {report}")]
    return Group(*parts)


def _table(entries: list[Entry]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        side: JustifyMethod = "left" if name in ("kernel", "timed by") else "right"
        table.add_column(name, justify=side, no_wrap=name not in ("kernel", "quartiles"), overflow="fold")
    for entry in entries:
        row = [one_line(cell) for cell in cells(entry)]
        row[3] = row[3] if len(row[3]) <= TOLD else row[3][: TOLD - 1] + "…"
        table.add_row(*row, style=STYLES[entry.status])
    return table
