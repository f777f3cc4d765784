"""`moecheck report`: finished runs once more, as a site, for a pull request, or in any other form."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from moecheck.cli.options import cores
from moecheck.errors import UsageError, check_known
from moecheck.report.findings_file import replace_file
from moecheck.report.folder import ReportFolder
from moecheck.report.junit import junit_xml
from moecheck.report.kernels_csv import kernels_csv
from moecheck.report.markdown import markdown_summary
from moecheck.report.pictures_file import read_picture
from moecheck.report.pull_request import pull_request
from moecheck.report.results import RunSummary
from moecheck.report.runs import Run, find_runs
from moecheck.report.text import count

HISTORY = "history.sqlite"  # beside the runs of `moecheck nightly`
LATEST = Path("reports") / "latest"
REPORTS = Path("reports")


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[DIR]...")
@click.option(
    "--format", "form", default="md", show_default=True, metavar="F", help="site, pr, html, md, junit or csv."
)
@click.option("--out", type=click.Path(path_type=Path), help="File, or the site's folder [standard output; DIR/site].")
@click.option(
    "--history", type=click.Path(path_type=Path), metavar="FILE", help="Of nights, for the site [DIR/history.sqlite]."
)
@click.option("--title", default="moecheck", show_default=True, help="Of the site.")
def report(folders: tuple[Path, ...], form: str, out: Path | None, history: Path | None, title: str) -> int:
    """Show finished runs again.

    DIR: folders that moecheck wrote, or ones above them. site: linked pages over all runs [reports]; pr: one block for
    a pull request, from runs of kernels, e2e and bench; html, md, junit, csv: one run of kernels [reports/latest].
    """
    check_known("format", form, ("site", *_VIEWS, "pr"))
    if form == "site":
        return _site(folders or (REPORTS,), out, history, title)
    if history is not None:
        raise UsageError(f"--history is for --format site; {form} shows the runs that are given.")
    runs = _runs(folders or (LATEST,))
    text = pull_request(runs) if form == "pr" else _VIEWS[form](_one(runs, form))
    if out is None:
        sys.stdout.write(text)
    else:
        replace_file(out, text)
    return 0


def _site(folders: Sequence[Path], out: Path | None, history: Path | None, title: str) -> int:
    from moecheck.report.site import build_site  # draws with matplotlib, which takes a second to import

    if history is not None and not history.is_file():
        raise UsageError(f"{history} does not exist; `moecheck nightly` writes it.")
    beside = folders[0] / HISTORY
    store = history or (beside if beside.is_file() else None)
    runs, unread = find_runs(folders)
    target = out or folders[0] / "site"
    pages, notes = build_site(target, runs, history=store, title=title, processes=min(cores(), 8))
    _tell([*unread, *notes])
    click.echo(f"{count(pages, 'page')} over {count(len(runs), 'run')}: {target / 'index.html'}")
    return 0


def _runs(folders: Sequence[Path]) -> list[Run]:
    runs, notes = find_runs(folders)
    _tell(notes)
    if not runs:
        raise UsageError(f"{', '.join(map(str, folders))}: no finished run of moecheck is there.")
    return runs


def _one(runs: Sequence[Run], form: str) -> Run:
    """The only run of kernels among them."""
    found = [run for run in runs if isinstance(run.content, RunSummary)]
    if len(found) != 1:
        raise UsageError(
            f"--format {form} shows one run of `moecheck kernels`, and {len(found)} are there; give its DIR."
        )
    return found[0]


def _summary(run: Run) -> RunSummary:
    assert isinstance(run.content, RunSummary)
    return run.content


def _html(run: Run) -> str:
    from moecheck.report.html import html_report  # draws with matplotlib

    summary = _summary(run)
    pictures = [read_picture(run.path, kernel.name) for kernel in summary.kernels if kernel.failed]
    return html_report(summary, [picture for picture in pictures if picture is not None])


def _junit(run: Run) -> str:
    return junit_xml(_summary(run), ReportFolder.open(run.path).findings())


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"moecheck: {note}", err=True)


_VIEWS: dict[str, Callable[[Run], str]] = {
    "html": _html,
    "md": lambda run: markdown_summary(_summary(run)),
    "junit": _junit,
    "csv": lambda run: kernels_csv(_summary(run)),
}
