"""The page of one run, by what it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from moecheck.bench.entry import Bench
from moecheck.checks.finding import Verdict
from moecheck.report.bench import COLUMNS, cells, groups, limits_words
from moecheck.report.contracts import contract_lines, floor_line
from moecheck.report.e2e_record import E2eRecord
from moecheck.report.headline import headline, kernels_by_reason, totals_line
from moecheck.report.html import KERNEL_COLUMNS, verdict_choices
from moecheck.report.limits import run_limits
from moecheck.report.mutants_view import coverage_tables
from moecheck.report.results import RunSummary
from moecheck.report.runs import Run
from moecheck.report.site.links import run_path, subject_path
from moecheck.report.site.page import Page
from moecheck.report.text import count
from moecheck.scoring.result import Score, share_killed

PARTS = {"kernels": "kernels", "e2e": "end to end", "mutants": "mutants", "bench": "speed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """What is said of a run wherever it is named. tone: class of its colour."""

    name: str
    part: str
    href: str
    started: datetime
    seconds: float
    headline: str
    tone: str
    machine: str
    git: str
    command: str
    profile: str
    versions: Mapping[str, str]


def run_row(run: Run) -> RunRow:
    """Of any run."""
    words, tone = _headline(run)
    versions = run.environment.get("versions")
    known = versions if isinstance(versions, dict) else {}
    python = {"python": str(run.environment["python"])} if "python" in run.environment else {}
    return RunRow(
        name=run.name,
        part=PARTS[run.part],
        href=run_path(run.name),
        started=run.started,
        seconds=run.seconds,
        headline=words,
        tone=tone,
        machine=run.machine,
        git=run.git or "",
        command=run.command,
        profile=getattr(run.content, "profile", None) or "",
        versions=python | {str(name): str(version) for name, version in known.items() if version},
    )


def run_page(run: Run, cases: Mapping[tuple[str, str], str]) -> Page:
    """The page of one run. cases: (run, kernel) -> path of the page on that case."""
    values: dict[str, Any] = {"run": run_row(run)}
    content = run.content
    if isinstance(content, RunSummary):
        values |= _kernels(run.name, content, cases)
    elif isinstance(content, E2eRecord):
        values |= {"e": content, "subject": subject_path("e2e", content.name)}
    elif isinstance(content, Score):
        values |= _mutants(content)
    else:
        values |= _bench(content)
    return Page(path=run_path(run.name), template=f"run_{run.part}", values=values)


def _headline(run: Run) -> tuple[str, str]:
    content = run.content
    if isinstance(content, RunSummary):
        failed = any(kernel.failed for kernel in content.kernels)
        passed = any(kernel.verdict is Verdict.PASS for kernel in content.kernels)
        return headline(content), "bad" if failed else "good" if passed else "unsure"
    if isinstance(content, E2eRecord):
        return f"{content.words}: {content.candidate} in {content.model}", content.tone
    if isinstance(content, Score):
        words = f"{'✔' if content.passed else '✘'} {content.overall:.1%} of {len(content.mutants)} mutants killed"
        return f"{words}, {count(len(content.false_alarms), 'false alarm')}", "good" if content.passed else "bad"
    wrong = sum(entry.status in ("wrong", "failed") for entry in content.entries)
    timed = sum(entry.status == "timed" for entry in content.entries)
    if wrong:
        return f"✘ {count(wrong, 'wrong or failed result')}, {count(timed, 'time')}", "bad"
    return f"{'✔' if timed else '?'} {count(timed, 'time')}", "good" if timed else "unsure"


def _kernels(name: str, summary: RunSummary, cases: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    tested = [kernel for kernel in reversed(summary.kernels) if kernel.verdict is not Verdict.SKIP]
    return {
        "summary": summary,
        "totals": totals_line(summary),
        "kernels": tested,
        "columns": KERNEL_COLUMNS,
        "choices": verdict_choices([kernel.verdict for kernel in tested]),
        "hrefs": {
            kernel.name: cases.get((name, kernel.name)) or subject_path("kernels", kernel.name) for kernel in tested
        },
        "limits": run_limits(summary),
        "low": floor_line(summary),
        "contracts": contract_lines(summary),
        "reasons": kernels_by_reason(summary),
    }


def _mutants(score: Score) -> dict[str, Any]:
    kinds = [
        (kind, own, sum(one.killed for one in own), sum(one.survived for one in own), share_killed(own))
        for kind in score.kinds
        for own in [score.of(kind)]
    ]
    return {"score": score, "kinds": kinds, "coverage": list(coverage_tables(score.coverage))}


def _bench(bench: Bench) -> dict[str, Any]:
    tables = [
        (title, [cells(entry) for entry in entries if entry.status != "skipped"])
        for title, entries in groups(bench.entries)
    ]
    left = {(entry.kernel, entry.reason) for entry in bench.entries if entry.status == "skipped"}
    return {
        "bench": bench,
        "columns": COLUMNS,
        "tables": [(title, rows) for title, rows in tables if rows],
        "limits": [(device, limits_words(limits)) for device, limits in bench.limits.items()],
        "left": sorted(left | set(bench.skipped.items())),
    }
