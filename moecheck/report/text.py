"""Words and numbers as people read them in every view of a report."""

from __future__ import annotations

import math
import re

from moecheck.checks.finding import Verdict

SYMBOLS = {
    Verdict.PASS: "✔",
    Verdict.FAIL: "✘",
    Verdict.PROVEN_WRONG: "✘",
    Verdict.TIMEOUT: "✘",
    Verdict.CRASH: "✘",
    Verdict.ERROR: "✘",
    Verdict.VACUOUS: "○",
    Verdict.INCONCLUSIVE: "?",
    Verdict.SKIP: "-",
}
# Everything that XML 1.0 forbids or a terminal acts upon, except tab and newline; and lone surrogates.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """`text` without control characters: a kernel's message must not steer a terminal or break an XML file."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`printable(text)` with every run of white space as one space."""
    return " ".join(printable(text).split())


def sentence(text: str) -> str:
    """`text` with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def verdict_words(verdict: Verdict) -> str:
    """Symbol and words: readable without colour."""
    return f"{SYMBOLS[verdict]} {verdict.value.replace('_', ' ')}"


def metric(value: float | None) -> str:
    """Three significant digits; `–` when not measured."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """`12 %`, `28 ×`, `> 1000 ×`."""
    if share < 10:
        return f"{100 * share:.0f} %"
    return f"{share:.3g} ×" if share <= 1000 else "> 1000 ×"


def duration(seconds: float) -> str:
    """`340 ms`, `12.3 s` or `4 min 05 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def count(number: int, noun: str) -> str:
    """`1 kernel`, `1,234 kernels`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def place(where: dict[str, int]) -> str:
    """`token 3, column 17`."""
    return ", ".join(f"{axis} {index}" for axis, index in where.items())
