"""Finds the processes that a run started, by a mark in their environment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

MARK = "MOECHECK_TEST_MARK"


def marked(mark: str) -> set[int]:
    """Ids of living processes with that mark; zombies have no environment any more."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environ = (folder / "environ").read_bytes()
            except OSError:  # it ended, or is not ours
                continue
            if f"{MARK}={mark}".encode() in environ.split(b"\0"):
                found.add(int(folder.name))
    return found - {os.getpid()}


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
