"""The score of `moecheck mutants` in a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moecheck.report.terminal import indented, unbroken
from moecheck.report.text import count, duration, one_line, printable
from moecheck.scoring.result import BARS, Cell, MutantScore, Score, share_killed

CHECKS = 14  # that are listed; the report has all
SHOWN = 12  # rows and columns of a matrix; the report has all
ALARMS = 8
_EMPTY = "·"


def score_view(score: Score, *, width: int, report: str | None = None) -> RenderableType:
    """The table of classes, survivors, correct kernels, limits, checks, coverage, and the headline last."""
    parts: list[RenderableType] = [_classes(score)]
    if score.survivors:
        parts += [Text(), Text("Survivors:", style="bold yellow"), *_survivors(score)]
    if score.unseen_undeclared:
        silent = f"Seen only in kernels whose contract is known ({len(score.unseen_undeclared)}):"
        parts += [
            Text(),
            Text(silent, style="dim"),
            indented(one_line(", ".join(score.unseen_undeclared)), style="dim"),
        ]
    unexpected = [one for one in score.mutants if one.killed and not one.as_expected]
    if unexpected:
        parts += [Text(), Text("Seen, but not by the check that should see them:", style="yellow")]
        parts += [
            indented(f"{one.id}: expected {', '.join(one.expected)}; seen by {', '.join(one.checks[:4])}")
            for one in unexpected
        ]
    for one in score.false_claims:
        parts += [Text(), Text(f"{one.id} is called equivalent, and its outputs differ.", style="bold red")]
    if score.alarms or score.limits:
        parts += [Text(), _numerics(score)]
    if score.false_alarms:
        parts += [Text(), Text("Correct kernels that were accused:", style="bold red")]
        parts += [indented(one_line(text)) for text in score.false_alarms[:ALARMS]]
    if score.kills:
        parts += [Text(), _checks(score)]
    if score.coverage:
        parts += [Text(), *_coverage(score, width)]
    for reason in dict.fromkeys(score.skipped.values()):
        names = ", ".join(name for name, its in score.skipped.items() if its == reason)
        parts.append(Text(f"Skipped {one_line(names)}: {one_line(reason)}", style="dim"))
    parts += [Text(), _headline(score)]
    if report:
        parts.append(unbroken(f"Report: {printable(report)}"))
    return Group(*parts)


def coverage_tables(cells: Sequence[Cell]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[object, ...]]]]:
    """Title, header and rows of the two faces of the matrix: `cases / mutants that died`, sorted by cases."""
    for first, second in (("routing", "activation"), ("quantisation", "plumbing")):
        counts, died = _faces(cells, first, second)
        rows = _by_cases(counts, 0)
        columns = _by_cases(counts, 1)
        table: list[tuple[object, ...]] = [
            (row, *(_cell(counts.get((row, column), 0), died.get((row, column), set())) for column in columns))
            for row in rows
        ]
        yield f"{first} x {second}", (first, *columns), table


def _classes(score: Score) -> Table:
    silent = score.undeclared()[1] > 0
    table = _table("class", ">mutants", ">killed", ">survived", ">equivalent", ">score", *[">undeclared"] * silent)
    for kind in score.kinds:
        own = score.of(kind)
        survived = sum(one.survived for one in own)
        share = share_killed(own)
        table.add_row(
            kind,
            str(len(own)),
            str(sum(one.killed for one in own)),
            Text(str(survived), style="yellow" if survived else "dim"),
            Text(str(sum(bool(one.equivalent) for one in own)), style="dim"),
            Text(_percent(share), style="green" if share >= BARS[score.profile] else "bold red"),
            *[_share(*score.undeclared(kind))] * silent,
        )
    table.add_section()
    table.add_row(
        Text("macro average", style="bold"),
        str(len(score.mutants)),
        str(sum(one.killed for one in score.mutants)),
        str(len(score.survivors)),
        str(sum(bool(one.equivalent) for one in score.mutants)),
        Text(_percent(score.macro), style="bold"),
        *[_share(*score.undeclared())] * silent,
    )
    return table


def _share(seen: int, tried: int) -> str:
    return _percent(seen / tried) if tried else "–"


def _survivors(score: Score) -> Iterator[RenderableType]:
    for one in score.survivors:
        yield Text.assemble("  ", (one_line(one.id), "bold"), f"  p_kill {one.p_kill:.2f}  {one_line(one.words)}")
        yield indented(f"  {one.why}", style="dim")


def _numerics(score: Score) -> Table:
    table = _table(
        "correct kernels", ">judged", ">variants", ">false alarms", ">least factor seen", ">one element", ">of 65,536"
    )
    limits = {one.name: one for one in score.limits}
    names = list(dict.fromkeys([*(one.name for one in score.alarms), *limits]))
    for name in names:
        alarms = next((one for one in score.alarms if one.name == name), None)
        limit = limits.get(name)
        wrong = len(alarms.alarms) if alarms else 0
        table.add_row(
            name,
            str(alarms.trials) if alarms else "–",
            str(alarms.variants) if alarms else "–",
            Text(str(wrong) if alarms else "–", style="bold red" if wrong else "green"),
            "–" if limit is None or limit.factor is None else f"1 + {limit.factor:.2g}",
            "–" if limit is None or limit.sigmas is None else f"{limit.sigmas:g} sigma",
            "–" if limit is None or limit.elements is None else f"{limit.elements} off by 4 sigma",
        )
    return table


def _checks(score: Score) -> Table:
    table = _table("check", ">mutants seen", ">by no other")
    unique, kills = score.unique_kills, score.kills.most_common()
    for check, number in kills[:CHECKS]:
        alone = unique.get(check, 0)
        table.add_row(check, str(number), Text(str(alone) if alone else _EMPTY, style="bold" if alone else "dim"))
    if len(kills) > CHECKS:
        table.add_row(Text(f"and {len(kills) - CHECKS} more: see the report", style="dim"), "", "")
    return table


def _coverage(score: Score, width: int) -> Iterator[RenderableType]:
    yield Text("Cases / mutants that died there:", style="bold")
    for first, second in (("routing", "activation"), ("quantisation", "plumbing")):
        counts, died = _faces(score.coverage, first, second)
        rows, columns = _by_cases(counts, 0), _by_cases(counts, 1)
        # Nine characters a cell, and the widest name of a row.
        fits = max(2, min(SHOWN, (width - max(len(row) for row in rows[:SHOWN]) - 4) // 10))
        table = _table(first, *(f">{_short(column)}" for column in columns[:fits]))
        for row in rows[:SHOWN]:
            cells = [_cell(counts.get((row, c), 0), died.get((row, c), set())) for c in columns[:fits]]
            table.add_row(row, *(Text(cell, style="dim" if cell == _EMPTY else "") for cell in cells))
        yield table
        hidden = max(0, len(rows) - SHOWN), max(0, len(columns) - fits)
        if any(hidden):
            yield Text(
                f"  and {count(hidden[0], 'row')}, {count(hidden[1], 'column')} more ({second}): see the report",
                style="dim",
            )


def _headline(score: Score) -> Text:
    tried = [one for one in score.mutants if not one.equivalent]
    killed = sum(one.killed for one in tried)
    alarms = len(score.false_alarms)
    judged = sum(one.trials for one in score.alarms)
    bar = _percent(BARS[score.profile])
    text = f"{killed} of {len(tried)} mutants killed ({_percent(score.overall)}; the bar is {bar})"
    if judged or alarms:
        text += f", {count(alarms, 'false alarm')} on {count(judged, 'correct kernel')}"
    text += f" · {count(score.seeds, 'seed')} · {duration(score.seconds)}"
    return Text(text, style="bold" if score.passed else "bold red")


def _faces(
    cells: Iterable[Cell], first: str, second: str
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], set[str]]]:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    died: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell in cells:
        key = getattr(cell, first), getattr(cell, second)
        counts[key] += cell.cases
        died[key] |= set(cell.died)
    return counts, died


def _by_cases(counts: dict[tuple[str, str], int], axis: int) -> list[str]:
    totals: dict[str, int] = defaultdict(int)
    for key, number in counts.items():
        totals[key[axis]] += number
    return sorted(totals, key=lambda name: (-totals[name], name))


def _cell(cases: int, died: set[str]) -> str:
    return f"{cases}/{len(died)}" if cases else _EMPTY


def _short(name: str) -> str:
    """A column's name in two lines."""
    return name.replace(", ", "\n")


def _percent(share: float) -> str:
    """`100 %`, `99.6 %`: never rounded up to 100."""
    return "100 %" if share == 1.0 else f"{min(100 * share, 99.9):.1f} %".replace(".0 %", " %")


def _table(*names: str) -> Table:
    """A table; a name that begins with > is of a column of numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        number = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if number else "left", no_wrap=number)
    return table


__all__ = ["MutantScore", "coverage_tables", "score_view"]
