"""What a process that died had printed, in one line."""

from __future__ import annotations

import re
from pathlib import Path

_FRAME = re.compile(r'^  File "([^"]*)", line (\d+) in (\S+)$', re.MULTILINE)
_CALLER = "moecheck/runner/worker.py"
_READ = 1 << 16


def last_words(log: Path, lines: int = 3) -> str:
    """The last lines printed or, of a fault that Python noticed, its name and the kernel's line that it came from."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _READ))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    fault = text.rfind("Fatal Python error: ")
    if fault < 0:
        return " / ".join(line.strip() for line in text.strip().splitlines()[-lines:])[:300]
    name = text[fault:].splitlines()[0]
    place = _place(text[fault:])
    return f"{name} at {place}" if place else name


def _place(dump: str) -> str:
    """`file.py:12`: the innermost line of the file whose function the worker called."""
    frames = []
    for file, line, _ in _FRAME.findall(dump):
        if Path(file).as_posix().endswith(_CALLER):
            break
        frames.append((file, line))
    own = [f"{Path(file).name}:{line}" for file, line in frames if file == frames[-1][0]]
    return own[0] if own else ""
