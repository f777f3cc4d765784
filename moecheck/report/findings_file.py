"""findings.jsonl: one finding a line, kept through a crash.

The lines of one kernel x case are one write to an append-only descriptor, and the last of them is the `case` line.
A group without that line was cut off, and its kernel x case has to run again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from moecheck.checks.finding import Finding
from moecheck.errors import HarnessError, UsageError
from moecheck.json_text import loads
from moecheck.report.strict_json import dumps, number
from moecheck.report.summarise import CASE
from moecheck.typed import check_types


def append_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Append the findings of one kernel x case; the last must be its `case` line.

    Raises UsageError when the disk does not take them.
    """
    keys = {(finding.kernel, finding.case) for finding in findings}
    closing = [index for index, finding in enumerate(findings) if finding.check == CASE]
    if len(keys) != 1 or closing != [len(findings) - 1]:
        raise HarnessError(f"the findings of one kernel x case end with its {CASE!r} line; got {sorted(keys)}.")
    block = "".join(dumps(finding.to_json()) + "\n" for finding in findings).encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(descriptor, block)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error
    if written != len(block):
        raise UsageError(f"Cannot write {path}: the disk took {written} of {len(block)} bytes.")


def read_findings(path: Path) -> list[Finding]:
    """The findings of every kernel x case that was finished, each once; none when the file does not exist.

    A cut-off last line, lines that are no findings and groups without a `case` line are left out; of a kernel x case
    that was judged twice the later judgement counts.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    open_groups: dict[tuple[str, str], list[Finding]] = {}
    closed: dict[tuple[str, str], list[Finding]] = {}
    for line in text.split("\n"):
        finding = _parse(line)
        if finding is None:
            open_groups.clear()
            continue
        key = (finding.kernel, finding.case)
        open_groups.setdefault(key, []).append(finding)
        if finding.check == CASE:
            closed[key] = open_groups.pop(key)
    return [finding for lines in closed.values() for finding in lines]


def repair_findings(path: Path) -> list[Finding]:
    """`read_findings`, and the file then holds exactly these; replaced in one step, so that a crash loses nothing."""
    findings = read_findings(path)
    if path.exists():
        replace_file(path, "".join(dumps(finding.to_json()) + "\n" for finding in findings))
    return findings


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a crash, sees either the old content or all of the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error


def _parse(line: str) -> Finding | None:
    try:
        data = loads(line)
        data["numbers"] = {name: number(value) for name, value in data["numbers"].items()}
        finding = Finding.from_json({**data, "seconds": number(data["seconds"])})
        check_types(finding)
        return finding
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
