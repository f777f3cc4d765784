"""What a night says, as lines for a terminal and as summary.md."""

from __future__ import annotations

from collections import Counter

from moecheck.history.records import Status
from moecheck.nightly.compare import CODES, WORDS
from moecheck.nightly.night import NightResult
from moecheck.nightly.parts import Done
from moecheck.report.markdown import code, escape
from moecheck.report.text import count, duration, one_line

RED = tuple(status for status, number in CODES.items() if number != 4)
SHOWN = 50  # lines of one kind; nightly.json has all
NOTES = ("changed", "expired", "matches nothing", "known, passed tonight", "not run", "fixed", "known", "skipped")


def headline(result: NightResult) -> str:
    """`✘ 1 regression: torch/index_add`, `✔ nothing new`."""
    found = Counter(one.status for one in result.night.statuses if one.status in CODES)
    if not found:
        known = len(result.of("known"))
        return "✔ nothing new" + (f", {count(known, 'known finding')}" if known else "")
    first = next(status for status in CODES if status in found)
    names = [one.subject for one in result.of(first)]
    shown = ", ".join(map(one_line, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    sign = "✘" if first in RED else "?"
    others = [f"{number} {status}" for status, number in found.items() if status != first]
    return f"{sign} {found[first]} {first}: {shown}" + (f"; {', '.join(others)}" if others else "")


def lines(result: NightResult) -> list[str]:
    """For a terminal: what is notable, the parts, and the headline next to the prompt."""
    text = []
    for status in (*reversed(NOTES), *reversed(CODES)):
        found = result.of(status)
        text += [f"{_sign(status)} {status:14} {_subject(one)}  {_message(one)}".rstrip() for one in found[:SHOWN]]
        text += [f"  and {len(found) - SHOWN} more: see nightly.json"] if len(found) > SHOWN else []
    text += [""] if text else []
    text += [f"  {one.label:12} {_part(one)}" for one in result.parts]
    text += ["", compared_words(result), drift_words(result), one_line(headline(result))]
    return text


def compared_words(result: NightResult) -> str:
    if result.before is None:
        return f"First night called {one_line(result.night.name)!r}: there is nothing to compare with."
    return f"Compared with {result.before}; {count(result.nights, 'night')} in the history."


def drift_words(result: NightResult) -> str:
    if result.untested is not None:
        return f"Drift was not tested: {one_line(result.untested)}"
    if not result.series:
        return "Drift was not tested: no series is long enough."
    return f"{result.series:,} series of numbers tested for drift."


def markdown(result: NightResult) -> str:
    """summary.md: headline, what is notable, the parts."""
    night = result.night
    text = [
        f"# moecheck nightly: {escape(headline(result))}",
        "",
        f"{escape(night.name)}, {night.started}, seed {night.seed}, commit {night.git or 'unknown'}, "
        f"{escape(night.machine)}: {duration(night.seconds)}. {escape(compared_words(result))} "
        f"{escape(drift_words(result))}",
        "",
    ]
    for status in (*CODES, *NOTES):
        found = result.of(status)
        if found:
            words = WORDS.get(status)
            text += [f"## {status.capitalize()}" + (f" ({words})" if words else ""), ""]
            for one in found[:SHOWN]:
                parts = [escape(part) for part in one.message.split(" | ")]
                about = ", ".join(filter(None, [escape(one.label), escape(one.device), escape(one.check)]))
                text += [f"* {code(one.subject)} ({about})"]
                text += [f"  * {part}" for part in parts if part]
            text += [f"* and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
            text += [""]
    text += ["## Parts", "", "| part | command | ended | seconds |", "|---|---|---|---|"]
    for part in result.parts:
        text.append(f"| {escape(part.label)} | {code(part.command)} | {escape(_ended(part))} | {part.seconds:.0f} |")
    return "\n".join(text) + "\n"


def _part(one: Done) -> str:
    return one_line(f"{_ended(one)}, {duration(one.seconds)}" if one.status == "ran" else _ended(one))


def _ended(one: Done) -> str:
    if one.status == "ran":
        return f"exit code {one.exit_code}"
    return f"{one.status}: {one.reason}"


def _sign(status: str) -> str:
    return "✘" if status in RED else "?" if status in CODES else "·"


def _subject(one: Status) -> str:
    return one_line(f"{one.subject} ({one.device})" if one.device else one.subject)


def _message(one: Status) -> str:
    check = f"{one.check}: " if one.check else ""
    return one_line(f"{check}{one.message}")
