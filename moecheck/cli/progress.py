"""What a user sees while kernels run: a live bar on a terminal, one line per finished kernel into a pipe."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from moecheck.checks.finding import FAILURES, Finding, Verdict, worst
from moecheck.report.text import one_line, verdict_words
from moecheck.runner.plan import Plan


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """While something takes long: the function that it gives shows a line, and on a terminal what is waited for."""
    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        console.print(one_line(line), markup=False, soft_wrap=True)

    if what and console.is_terminal:
        with console.status(what):
            yield say
    else:
        yield say


class LiveProgress:
    """Counts finished cases; `advance` may be called from several threads."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._lock = threading.Lock()
        self._left: Counter[str] = Counter()
        self._verdicts: dict[str, list[Verdict]] = {}
        self._failed = 0
        self._seen: set[tuple[str, str]] = set()
        self._bar: Progress | None = None
        self._task = None

    @contextmanager
    def searching(self) -> Iterator[None]:
        """While kernels are looked for and imported."""
        if self._console.is_terminal:
            with self._console.status("looking for kernels"):
                yield
        else:
            yield

    @contextmanager
    def running(self, plans: list[Plan], done: set[tuple[str, str]]) -> Iterator[None]:
        """While the plans run; `done` pairs are counted as finished."""
        for plan in plans:
            name = plan.declaration.name
            self._left[name] = sum((name, case.id) not in done for case in (*plan.cases, *plan.left_out))
        if not self._console.is_terminal:
            yield
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("checks"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        with self._bar as bar:
            self._task = bar.add_task("kernels", total=self._left.total(), note="")  # type: ignore[assignment]
            yield
        self._bar = None

    def advance(self, plan: Plan, findings: list[Finding]) -> None:
        """One kernel x case is finished; a second report of it adds a finding and counts nothing."""
        key = (findings[-1].kernel, findings[-1].case)
        with self._lock:
            if key in self._seen:
                return
            self._seen.add(key)
            name, verdict = plan.declaration.name, findings[-1].verdict
            self._left[name] -= 1
            self._verdicts.setdefault(name, []).append(verdict)
            self._failed += verdict in FAILURES
            if self._bar is not None and self._task is not None:
                note = f"{self._failed} failed · {one_line(name)}" if self._failed else one_line(name)
                self._bar.update(self._task, advance=1, note=note)
            if self._left[name] == 0:
                self._finished(plan)

    def _finished(self, plan: Plan) -> None:
        verdicts = self._verdicts[plan.declaration.name]
        verdict = worst(verdicts)
        judged = sum(v is not Verdict.SKIP for v in verdicts)
        text = f"{verdict_words(verdict):16} {one_line(plan.declaration.name)}  {judged} cases"
        if self._bar is None or verdict in FAILURES:
            self._console.print(text, markup=False, soft_wrap=True)
