"""`moecheck history`: what earlier nights found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pandas as pd
from rich.table import Table

from moecheck.cli.options import color, width
from moecheck.errors import UsageError, check_known
from moecheck.history.ingest import read_run
from moecheck.history.store import History
from moecheck.report.terminal import render
from moecheck.report.text import metric, one_line

FORMATS = ("table", "csv", "json")
DEFAULT = Path("reports/history.sqlite")
HIDDEN = {  # columns that a table leaves out; csv and json have them
    "run", "label", "machine", "folder", "command", "git", "seed", "worst_case", "reproduce", "backend", "diagnosis",
    "p_step", "p_trend", "op", "name",
}  # fmt: skip
Query = Callable[[History, dict[str, str | None]], pd.DataFrame]


def _drift(history: History, only: dict[str, str | None]) -> pd.DataFrame:
    from moecheck.history.drift import drifts, frame_of

    table = history.metrics(**only)
    names = sorted(set(table["name"].dropna()))
    found = [one for name in names for one in drifts(table[table["name"] == name])]
    return frame_of(found)


# What -> its query, and the options of the command that it takes.
QUERIES: dict[str, tuple[Query, tuple[str, ...]]] = {
    "nights": (lambda h, only: h.nights(**only), ("name", "since")),
    "runs": (lambda h, only: h.runs(**only), ("part", "night")),
    "results": (lambda h, only: h.results(**only), ("part", "subject", "name", "since", "night")),
    "failures": (lambda h, only: h.failures(**only), ("part", "subject", "name", "since", "night")),
    "metrics": (lambda h, only: h.metrics(**only), ("part", "subject", "metric", "name", "since", "night")),
    "statuses": (lambda h, only: h.statuses(**only), ("name", "since", "night")),
    "drift": (_drift, ("part", "subject", "metric", "name", "since")),
}


@click.command()
@click.argument("what", default="nights")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--history", "path", type=click.Path(path_type=Path), default=DEFAULT, show_default=True, help="The file."
)
@click.option("--part", metavar="P", help="Only kernels, mutants, e2e or bench.")
@click.option("--subject", metavar="S", help="Only this kernel, mutant, ...; a pattern with *.")
@click.option("--metric", metavar="M", help="Only this number, max_diff for example.")
@click.option("--name", metavar="N", help="Only nights of this name.")
@click.option("--night", metavar="ID", help="Only this night.")
@click.option("--since", metavar="TIME", help="Only from then on, 2026-11-01 for example.")
@click.option("--format", "form", default="table", show_default=True, metavar="F", help="table, csv or json.")
def history(what: str, folders: tuple[Path, ...], path: Path, form: str, **only: str | None) -> int:
    """Show nights, runs, results, failures, metrics, statuses or drift; or add FOLDER... to the history.

    The same tables as pandas DataFrames: moecheck.history.History.
    """
    check_known("format", form, FORMATS)
    check_known("query", what, [*QUERIES, "add"])
    given = {name: value for name, value in only.items() if value is not None}
    if what == "add":
        return _add(path, folders, given)
    if folders:
        raise UsageError(f"{folders[0]}: only `moecheck history add` takes folders.")
    query, takes = QUERIES[what]
    for name in given:
        if name not in takes:
            raise UsageError(f"--{name} means nothing to {what}: it takes {', '.join(f'--{one}' for one in takes)}.")
    with History.open(path, read_only=True) as store:
        table = query(store, dict(given))
    click.echo(_shown(table, form), nl=False)
    return 0


def _add(path: Path, folders: tuple[Path, ...], given: dict[str, str]) -> int:
    """Runs that no night made."""
    if not folders or given:
        raise UsageError("moecheck history add takes report folders, and no option but --history.")
    runs = [read_run(folder) for folder in folders]
    with History.open(path) as store:
        for run in runs:
            new = store.add_run(run)
            click.echo(
                f"{run.run}: {'added' if new else 'is there already'}, {len(run.results)} subjects of {run.part}"
            )
    return 0


def _shown(table: pd.DataFrame, form: str) -> str:
    if form == "csv":
        return str(table.to_csv(index=False))
    if form == "json":
        return f"{table.to_json(orient='records', date_format='iso', indent=1)}\n"
    view = Table(box=None, pad_edge=False, header_style="bold")
    columns = [name for name in table.columns if name not in HIDDEN]
    for name in columns:
        view.add_column(name, overflow="fold")
    for row in table[columns].itertuples(index=False):
        view.add_row(*(one_line(_cell(value)) for value in row))
    return render(view, width=width(), color=color()) if len(table) else "none\n"


def _cell(value: object) -> str:
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return metric(value)
    return "" if value is None else str(value)
