"""report.html: a run as one self-contained page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moecheck.checks.finding import FAILURES, SEVERITY, Verdict
from moecheck.identify.floor import store_words
from moecheck.report.contracts import contract_lines, contract_words, floor_line
from moecheck.report.headline import headline, kernels_by_reason, totals_line
from moecheck.report.limits import run_limits, sees_cell, sees_words
from moecheck.report.names import slug
from moecheck.report.picture import ErrorPicture
from moecheck.report.plots import heat_map_svg, histogram_svg, z_histogram_svg
from moecheck.report.results import RunSummary
from moecheck.report.text import duration, metric, percent, place, printable, sentence, verdict_words

# Label, and whether it is a number.
KERNEL_COLUMNS = (
    ("kernel", False),
    ("op", False),
    ("device", False),
    ("verdict", False),
    ("cases", True),
    ("max diff", True),
    ("max rel diff", True),
    ("mismatch", True),
    ("worst z", True),
    ("sees", True),
    ("seconds", True),
)


def html_report(summary: RunSummary, pictures: Sequence[ErrorPicture] = ()) -> str:
    """The page; `pictures` are matched to kernels by name.

    Every string is escaped, and a content security policy forbids all requests and every script but the page's own.
    """
    tested = [kernel for kernel in reversed(summary.kernels) if kernel.verdict != Verdict.SKIP]
    template = page_environment().get_template("report.html")
    return template.render(
        columns=KERNEL_COLUMNS,
        summary=summary,
        headline=headline(summary),
        totals=totals_line(summary),
        kernels=tested,
        choices=verdict_choices([kernel.verdict for kernel in tested]),
        reasons=kernels_by_reason(summary),
        pictures={picture.kernel: picture for picture in pictures},
        limits=run_limits(summary),
        low=floor_line(summary),
        contracts=contract_lines(summary),
    )


def page_environment(*, style: str = "") -> Environment:
    """Templates in which every text is escaped and without control characters. style: CSS after the report's own."""
    environment = Environment(
        loader=PackageLoader("moecheck.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters.update(metric=metric, duration=duration, place=place, slug=slug, tone=_tone)
    environment.filters.update(percent=percent, sentence=sentence)
    script = _file("report.js")
    environment.globals.update(
        heat_map=heat_map_svg,
        histogram=histogram_svg,
        z_histogram=z_histogram_svg,
        words=verdict_words,
        sees=sees_words,
        sees_cell=sees_cell,
        contract=contract_words,
        stores=store_words,
        style=Markup(_file("report.css") + style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return environment


def verdict_choices(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """What a table can be narrowed to: value and words of those that occur, the worst first."""
    return [(verdict.value, verdict_words(verdict)) for verdict in reversed(SEVERITY) if verdict in verdicts]


def _tone(verdict: Verdict) -> str:
    """The class of a verdict's colour."""
    if verdict in FAILURES:
        return "bad"
    return "good" if verdict == Verdict.PASS else "unsure"


def _file(name: str) -> str:
    return (resources.files("moecheck.report") / "templates" / name).read_text(encoding="utf-8")
