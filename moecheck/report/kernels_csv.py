"""One row a kernel, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from dataclasses import fields

from moecheck.report.results import KernelSummary, RunSummary
from moecheck.report.text import one_line

_PLAIN = ("str", "int", "float", "Verdict", "str | None", "float | None")
COLUMNS = tuple(field.name for field in fields(KernelSummary) if str(field.type) in _PLAIN)
_FORMULA = ("=", "+", "-", "@")


def kernels_csv(summary: RunSummary) -> str:
    """The numbers and texts of each kernel; an empty cell was not measured.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([_cell(getattr(kernel, name)) for name in COLUMNS] for kernel in summary.kernels)
    return file.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else value
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
