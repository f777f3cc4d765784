"""From runs and a history to the pages of a site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moecheck.checks.finding import Verdict
from moecheck.errors import UsageError
from moecheck.report.html import verdict_choices
from moecheck.report.picture import ErrorPicture
from moecheck.report.pictures_file import read_picture
from moecheck.report.results import KernelSummary, RunSummary
from moecheck.report.runs import Run
from moecheck.report.site.links import case_path, run_path, subject_path
from moecheck.report.site.page import Page, write_pages
from moecheck.report.site.panels import trends
from moecheck.report.site.parts import run_page, run_row
from moecheck.report.site.points import Point, by_subject, merged, points_of_history, points_of_runs
from moecheck.report.site.statuses import Status, statuses_of_history

STRIP = 30  # newest runs of a kernel whose verdicts the index shows
INDEX = "index.html"


@dataclass(slots=True, kw_only=True)
class _Site:
    """What is known while pages are made. cases: (run, kernel) -> path of the page on it. notes: for the user."""

    runs: Sequence[Run]
    points: Sequence[Point]
    statuses: Sequence[Status]
    cases: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)


def build_site(
    folder: Path, runs: Sequence[Run], *, history: Path | None = None, title: str = "moecheck", processes: int = 1
) -> tuple[int, list[str]]:
    """Write the site into `folder`, which is new, empty or an earlier site; the number of pages, and notes.

    history: a store that `moecheck nightly` keeps, for runs whose folders are gone. Raises UsageError where the folder
    cannot be taken or nothing is there to show.
    """
    points = merged(points_of_history(history) if history else [], points_of_runs(runs))
    if not runs and not points:
        raise UsageError("There is no finished run to show; `moecheck kernels` makes one.")
    _take(folder)
    site = _Site(runs=runs, points=points, statuses=statuses_of_history(history) if history else [])
    _cases(site)
    for part in ("kernels", "e2e", "bench"):
        _subjects(site, part)
    site.pages += [run_page(run, site.cases) for run in runs]
    site.pages.append(_index(site, title))
    write_pages(folder, site.pages, processes=processes)
    return len(site.pages), site.notes


def _take(folder: Path) -> None:
    """Make the folder; refuse one in which something else lies."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / INDEX).is_file())):
        raise UsageError(f"{folder} is not empty and no site of moecheck; choose another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot write {folder}: {error.strerror}.") from error


def _cases(site: _Site) -> None:
    """A page for every kernel of a run that did not pass, and for the newest pass of each kernel."""
    newest: dict[tuple[str, str], str] = {}
    for run in site.runs:
        if isinstance(run.content, RunSummary):
            newest |= {(kernel.name, kernel.device): run.name for kernel in _judged(run.content)}
    for run in site.runs:
        if not isinstance(run.content, RunSummary):
            continue
        for kernel in _judged(run.content):
            if kernel.verdict is Verdict.PASS and newest[kernel.name, kernel.device] != run.name:
                continue
            path = case_path(run.name, kernel.name)
            site.cases[run.name, kernel.name] = path
            values = {
                "run": run_row(run),
                "k": kernel,
                "picture": _picture(site, run, kernel),
                "subject": subject_path("kernels", kernel.name),
                "run_href": run_path(run.name),
            }
            site.pages.append(Page(path=path, template="case", values=values))


def _judged(summary: RunSummary) -> list[KernelSummary]:
    return [kernel for kernel in summary.kernels if kernel.verdict is not Verdict.SKIP]


def _picture(site: _Site, run: Run, kernel: KernelSummary) -> ErrorPicture | None:
    try:
        return read_picture(run.path, kernel.name)
    except UsageError as error:
        site.notes.append(str(error))
        return None


def _subjects(site: _Site, part: str) -> None:
    """A page for each kernel, each model with its candidate, each timed kernel: how it went over the runs."""
    newest = {
        (run.name, kernel.name): kernel
        for run in site.runs
        if isinstance(run.content, RunSummary)
        for kernel in run.content.kernels
    }
    folders = {run.name for run in site.runs}
    for subject, points in by_subject(site.points, part).items():
        last = points[-1]
        values = {
            "subject": subject,
            "part": part,
            "last": last,
            "trends": trends(points, part),
            "k": newest.get((last.run, subject)),
            "case": site.cases.get((last.run, subject)),
            "cases": {point.run: site.cases.get((point.run, subject)) for point in points},
            "run_hrefs": {point.run: run_path(point.run) if point.run in folders else None for point in points},
        }
        site.pages.append(Page(path=subject_path(part, subject), template="subject", values=values))


def _index(site: _Site, title: str) -> Page:
    rows = {part: _rows(site, part) for part in ("kernels", "e2e", "bench")}
    newest = {run.part: run_row(run) for run in site.runs}
    verdicts = [row["last"].verdict for row in rows["kernels"]]
    values = {
        "title": title,
        "newest": newest,
        "rows": rows,
        "changed": [row for part in rows.values() for row in part if row["changed"]],
        "statuses": site.statuses,
        "subject_paths": {row["subject"]: row["href"] for row in rows["kernels"]},
        "choices": verdict_choices(verdicts),
        "runs": [run_row(run) for run in reversed(site.runs)],
    }
    return Page(path=INDEX, template="index", values=values)


def _rows(site: _Site, part: str) -> list[dict[str, Any]]:
    """Of each subject on each device: its newest run, the verdicts before, and whether the last one is another."""
    rows = []
    for subject, points in by_subject(site.points, part).items():
        for device in dict.fromkeys(point.device for point in points):
            own = [point for point in points if point.device == device]
            before = [point for point in own[:-1] if point.profile == own[-1].profile]
            rows.append(
                {
                    "subject": subject,
                    "href": subject_path(part, subject),
                    "last": own[-1],
                    "strip": own[-STRIP:],
                    "changed": bool(before) and before[-1].verdict is not own[-1].verdict,
                    "before": before[-1] if before else None,
                    "case": site.cases.get((own[-1].run, subject)),
                }
            )
    return sorted(rows, key=lambda row: not row["last"].failed)
