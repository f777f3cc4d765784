"""Audits as people read them: a record in a terminal, and tables of many in a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moecheck.report.text import count, metric

from .record import AuditRecord, Ranked
from .trial import DROPPED_EXPERT, Sigmas

SHOWN_NAMES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table. left: how many columns, from the left, are words. fixed: whether the first one is never broken."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    fixed: bool = False

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i, column in enumerate(self.columns):
            words = i < self.left
            table.add_column(
                column, justify="left" if words else "right", overflow="fold", no_wrap=i == 0 and self.fixed
            )
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """For a document."""
        lines = [self.columns, tuple("---" if i < self.left else "--:" for i in range(len(self.columns))), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def settings_grid(record: AuditRecord) -> Grid:
    """A row for each parametrisation of a test."""
    rows = [
        (
            one.note,
            metric(one.rms),
            metric(one.largest),
            sigma_text(one.sigmas),
            _of(one.refused, one.honest),
            _yes(one.accepted["zeros"]),
            _nan(one.accepted),
            _of(one.passing, one.tried),
        )
        for one in record.settings
    ]
    columns = (
        "inputs",
        "rms",
        "max",
        "in sigma",
        "right ones refused",
        "zeros pass",
        "NaN passes",
        "bugs pass",
    )
    return Grid(columns=columns, rows=tuple(rows))


def record_view(record: AuditRecord) -> RenderableType:
    """Everything about one criterion."""
    head = Text.assemble((record.name, "bold"), f"  {record.criterion.words()}")
    parts: list[RenderableType] = [head, Text(f"{record.source} · {record.op} · {record.dtype}", style="dim")]
    if record.scaled:
        parts.append(Text(f"Smaller here: {record.scaled}.", style="dim"))
    parts += [Text(), settings_grid(record).rich(), Text()]
    parts += [Text(line) for line in lines_of(record)]
    return Group(*parts)


def lines_of(record: AuditRecord) -> list[str]:
    """What was found, in sentences."""
    total = len(record.mutants)
    lines = []
    if not record.counts:
        lines.append(
            f"False alarm: it refuses {record.refused} of {record.honest} outputs of right kernels: it is no test."
        )
    zeros = record.accepts("zeros")
    if zeros:
        lines.append(f"An all-zeros output passes in {zeros} of {count(len(record.settings), 'setting')}.")
    passing = f"{_share(len(record.passing), total)} over {count(record.seeds, 'seed')}"
    lines.append(f"Known bugs that it lets pass: {passing}{_names(record.passing)}")
    lines.append(
        f"moecheck on the same inputs: {_share(len(record.unseen), total)}{_names(record.unseen)} "
        f"Right outputs that it fails: {record.false_alarms} of {record.honest}."
    )
    if record.own:
        lines.append(
            f"moecheck on its own inputs: {_share(len(record.own_unseen), len(record.own))}{_names(record.own_unseen)} "
            f"Right outputs that it fails: {record.own_false_alarms} of {record.own_honest}."
        )
    if record.untried:
        lines.append(f"Not simulated for a kernel that requantises: {len(record.untried)} bugs.")
    return lines


def records_grid(records: Sequence[AuditRecord]) -> Grid:
    """A row for each test."""
    rows = [
        (
            record.name,
            record.criterion.words(),
            _sigma_range(record),
            _of(record.refused, record.honest),
            _of(record.accepts("zeros"), len(record.settings)),
            _dropped(record),
            _of(len(record.passing), len(record.mutants)),
            _of(len(record.unseen), len(record.mutants)),
            _of(len(record.own_unseen), len(record.own)),
        )
        for record in records
    ]
    columns = (
        "test",
        "accepts",
        "in sigma",
        "right ones refused",
        "zeros pass",
        "dropped expert",
        "bugs pass",
        "pass moecheck",
        "own inputs",
    )
    return Grid(columns=columns, rows=tuple(rows), left=2, fixed=True)


def ranking_grid(rows: Sequence[Ranked], *, hindsight: str, most: int = 4) -> Grid:
    """A row for each criterion on the same outputs; of those chosen with hindsight only the best few that count."""
    shown, chosen = [], 0
    for row in rows:
        if row.origin == hindsight:
            chosen += 1
            if chosen > most or not row.counts:
                continue
        shown.append(
            (
                row.origin,
                row.criterion,
                _of(row.refused, row.honest),
                "yes" if row.zeros else "no",
                _share(row.caught, row.tried) if row.counts else f"({_share(row.caught, row.tried)})",
            )
        )
    columns = ("from", "accepts", "right ones refused", "zeros pass somewhere", "bugs caught")
    return Grid(columns=columns, rows=tuple(shown), left=2)


def sigma_text(sigmas: Sigmas | None) -> str:
    """`410 (170 .. 830)`."""
    if sigmas is None:
        return "–"
    if sigmas.low == sigmas.high:
        return _short(sigmas.median)
    return f"{_short(sigmas.median)} ({_short(sigmas.low)} .. {_short(sigmas.high)})"


def _sigma_range(record: AuditRecord) -> str:
    """Median sigmas of the tightest and of the widest setting."""
    medians = [setting.sigmas.median for setting in record.settings if setting.sigmas is not None]
    if not medians:
        return "–"
    low, high = min(medians), max(medians)
    return _short(low) if _short(low) == _short(high) else f"{_short(low)} .. {_short(high)}"


def _short(value: float) -> str:
    """Two digits; a large number as it is written."""
    return f"{value:.2g}" if not 100 <= value < 100_000 else f"{round(value, 1 - int(np.log10(value))):.0f}"


def _dropped(record: AuditRecord) -> str:
    own = [one for one in record.mutants if one.mutant.partition("/")[0] == DROPPED_EXPERT]
    if not own:
        return "–"
    return "caught" if all(one.by_test for one in own) else "passes"


def _nan(accepted: dict[str, bool]) -> str:
    passing = [name for name, passes in accepted.items() if passes and name != "zeros"]
    return ", ".join(passing) or "no"


def _of(part: int, total: int) -> str:
    return f"{part}/{total}" if total else "–"


def _share(part: int, total: int) -> str:
    return f"{part} of {total} ({100 * part / total:.0f} %)" if total else "–"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _names(names: Sequence[str]) -> str:
    """`: a, b, and 3 more.`"""
    if not names:
        return "."
    more = f", and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ": " + ", ".join(names[:SHOWN_NAMES]) + more + "."
