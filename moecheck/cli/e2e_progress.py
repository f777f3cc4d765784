"""What a user sees while a paired run goes: a bar with the time left on a terminal, a line a phase into a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from moecheck.evals.paired.watcher import Watcher
from moecheck.report.text import duration


class PhaseProgress(Watcher):
    """Phases with a number of steps; serves as the run's watcher."""

    def __init__(self) -> None:
        # The stream of now: lm-eval's own words are kept from it while it runs, and these must not be.
        self._console = Console(file=sys.stderr, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @contextmanager
    def phase(self, name: str, steps: int) -> Iterator[None]:
        """While `steps` steps of a phase are done."""
        start = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        if self._console.is_terminal:
            with Progress(*columns, console=self._console, transient=True) as bar:
                self._bar, self._task = bar, bar.add_task(name, total=steps)
                try:
                    yield
                finally:
                    self._bar = None
        else:
            yield
        self.say(f"{name}: {duration(time.monotonic() - start)}")

    def step(self, steps: int = 1) -> None:
        """So many steps of the phase are done."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, steps)

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)
