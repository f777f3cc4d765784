"""Values that several commands take from the command line, checked."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterable

import click

from moecheck.errors import UsageError, check_known
from moecheck.formats import FORMATS
from moecheck.numerics import STORES


def not_negative(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A finite number of at least 0."""
    if value is not None and not (value >= 0 and math.isfinite(value)):
        raise UsageError(
            f"--{(parameter.name or '').replace('_', '-')} must be a finite number of at least 0, not {value}."
        )
    return value


def positive(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A finite number above 0."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"--{(parameter.name or '').replace('_', '-')} must be a finite number above 0, not {value}.")
    return value


def parse_require(rules: Iterable[str]) -> dict[str, str]:
    """Store -> the narrowest format that a kernel may use there, of `FIELD=FORMAT` texts.

    The output's own format is the case's, so `out` is none of the fields.
    """
    required: dict[str, str] = {}
    for rule in rules:
        name, equals, fmt = rule.partition("=")
        if not equals:
            raise UsageError(f"--require {rule} must be FIELD=FORMAT, topk_weights=fp32 for example.")
        check_known("field of --require", name, [store for store in STORES if store != "out"])
        check_known("format of --require", fmt, FORMATS)
        if name in required:
            raise UsageError(f"--require {name} is given twice; once is enough.")
        required[name] = fmt
    return required


def parse_tokens(text: str) -> tuple[int, ...]:
    """The numbers of tokens of a text such as `1,16,4096`, in its order."""
    counts = [part.strip() for part in text.split(",")]
    if not all(count.isdecimal() and len(count) < 10 and int(count) > 0 for count in counts):
        raise UsageError(f"--tokens {text} must be positive numbers with commas between them, 1,16,4096 for example.")
    return tuple(dict.fromkeys(map(int, counts)))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def width() -> int:
    """Columns to print in: the terminal's, or 120 into a pipe."""
    return shutil.get_terminal_size((120, 40)).columns if sys.stdout.isatty() else 120


def color() -> bool:
    """Whether to colour: only on a terminal, and not where NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
