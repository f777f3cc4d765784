"""summary.md: a run as Markdown that can be pasted into a pull request."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from moecheck.checks.finding import Verdict
from moecheck.report.contracts import contract_lines, floor_line, odd_contract
from moecheck.report.headline import headline, kernels_by_reason, totals_line
from moecheck.report.limits import run_limits, sees_cell
from moecheck.report.results import RunSummary
from moecheck.report.text import duration, metric, one_line, place, printable, sentence, verdict_words


def markdown_summary(summary: RunSummary) -> str:
    """Headline, table of kernels (failures first), one section per failure, skips by reason."""
    environment = Environment(
        loader=PackageLoader("moecheck.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        escape=escape, code=code, block=block, metric=metric, duration=duration, place=place, sentence=sentence
    )
    return environment.get_template("summary.md").render(
        summary=summary,
        headline=headline(summary),
        totals=totals_line(summary),
        kernels=[kernel for kernel in reversed(summary.kernels) if kernel.verdict != Verdict.SKIP],
        reasons=kernels_by_reason(summary),
        low=floor_line(summary),
        contracts=contract_lines(summary),
        limits=run_limits(summary),
        odd_contract=odd_contract,
        sees=sees_cell,
        words=verdict_words,
    )


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line and inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$&@])", r"\\\1", one_line(text)).replace("\\<", "&lt;").replace("\\&", "&amp;")


def code(text: str) -> str:
    """Text as inline code, safe inside a table."""
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{one_line(text)}{pad}{fence}".replace("|", "\\|")


def block(text: str) -> str:
    """Text as a fenced block."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
