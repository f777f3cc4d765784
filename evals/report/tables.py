"""Tables of a paired run as text: lm-eval's usual Markdown form, the 2x2 table, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moecheck.evals.gsm8k.answers import Answer
from moecheck.evals.gsm8k.prompts import TASK, VERSION
from moecheck.evals.statistics.paired import PairedTable

FILTERS = (("flexible-extract", "flexible"), ("strict-match", "strict"))


def lm_eval_table(answers: Sequence[Answer], few_shot: int) -> str:
    """One arm's results as lm-eval prints them; the error is the sample deviation over sqrt(n)."""
    rows = [("Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr")]
    for number, (name, which) in enumerate(FILTERS):
        value, error = share([getattr(answer.score, f"{which}_right") for answer in answers])
        first = (TASK, f"{float(VERSION):g}") if number == 0 else ("", "")
        stderr = "N/A" if math.isnan(error) else f"{error:.4f}"
        rows.append((*first, name, str(few_shot), "exact_match", "↑", f"{value:.4f}", "±", stderr))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = {1, 3, 6, 8}
    rule = (
        "|" + "|".join("-" * (max(width, 3) - 1) + (":" if i in right else "-") for i, width in enumerate(widths)) + "|"
    )
    lines = []
    for row in rows:
        cells = [
            cell.rjust(max(width, 3)) if i in right else cell.ljust(max(width, 3))
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("|" + "|".join(cells) + "|")
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def share(right: Sequence[bool]) -> tuple[float, float]:
    """Mean and its standard error with n - 1, as lm-eval has it; NaN for the error of one answer."""
    n = len(right)
    mean = sum(right) / n
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(mean * (1 - mean) / (n - 1))


def paired_markdown(table: PairedTable, name: str) -> str:
    """The 2x2 table."""
    return (
        f"| {name} | candidate right | candidate wrong |\n|---|--:|--:|\n"
        f"| baseline right | {table.both} | {table.lost} |\n| baseline wrong | {table.gained} | {table.neither} |\n"
    )


def number(value: float | None) -> str:
    """Four significant digits; `–` for none."""
    if value is None:
        return "–"
    return "NaN" if math.isnan(value) else f"{value:.4g}"
