"""What a run tells while it goes; the command line draws it, tests ignore it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Watcher:
    """Phases with a number of steps; this one says nothing."""

    @contextmanager
    def phase(self, name: str, steps: int) -> Iterator[None]:
        """While `steps` steps of a phase are done."""
        yield

    def step(self, steps: int = 1) -> None:
        """So many steps of the phase are done."""

    def say(self, text: str) -> None:
        """One line that stays."""
