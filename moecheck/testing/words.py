"""Puts a judged call into words: seen, expected, where, what it looks like, and how to see it again."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from moecheck.cases import Case
from moecheck.checks.finding import Judgement
from moecheck.report.text import metric, one_line, place, verdict_words
from moecheck.spec import MoESpec

from .examine import CONTRACT, Examined

_NO_IDENTITY = ("name", "reason")  # of a case
_SHOWN = ("max_diff", "max_rel_diff", "mismatch_ratio", "max_z", "rms_z", "slope_error", "rms_ref")


def failure(examined: Examined, last: str) -> str:
    """The message of a comparison that did not pass. last: its last line, how to see it again."""
    lines = [
        f"{verdict_words(examined.verdict)}  {examined.given.words()}",
        reason(examined.decisive),
    ]
    lines += [examined.diagnosis] if examined.diagnosis else []
    lines += [f"contract: {examined.contract}"] if examined.contract and examined.decisive.check != CONTRACT else []
    lines += [numbers(examined)] if examined.numbers else []
    return "\n  ".join(map(one_line, [*lines, last]))


def numbers(examined: Examined) -> str:
    """The numbers that people compare; a program gets all of them."""
    shown = [f"{name}={metric(examined.numbers[name])}" for name in _SHOWN if name in examined.numbers]
    return "  ".join([*shown, f"(tol={examined.limits.tol:g})"])


def reason(judgement: Judgement) -> str:
    """`values: token 3, column 17: got ...`: its message, with the place where that does not name it."""
    where = place(judgement.where)
    at = f" At {where}." if where and not all(part in judgement.message for part in where.split(", ")) else ""
    return f"{judgement.check}: {judgement.message}{at}"


def again(case: Case | None, kept: Path | None) -> str:
    """How to see it again: the file that was kept, the case in one line, or how to keep the tensors."""
    if kept is not None:
        return f"again: moecheck check {kept}"
    if case is not None:
        return f"again: moecheck.testing.Case.from_json({json.dumps(changes(case))})"
    return "again: set MOECHECK_CAPTURE=DIR to keep the tensors of this call for `moecheck check`"


def changes(record: Case | MoESpec | Any) -> dict[str, Any]:
    """The fields of a record that are not as by default: what `from_json` needs to build it again."""
    default = type(record)(op=record.op) if isinstance(record, Case) else type(record)()
    changed: dict[str, Any] = {"op": record.op} if isinstance(record, Case) else {}
    for field in fields(record):
        value = getattr(record, field.name)
        if value != getattr(default, field.name) and field.name not in _NO_IDENTITY:
            changed[field.name] = changes(value) if hasattr(value, "__dataclass_fields__") else value
    return changed
