"""The same kernels and cases on other machines: a task is one kernel with its cases, run there as `run_all` runs it.

What a task returns is all that it found. Findings are written where the run was started, when a task has ended: one
that is lost with its machine begins again elsewhere, and what it had found until then was never written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from moecheck.checks.finding import Finding, Verdict
from moecheck.registry import Discovery, discover
from moecheck.runner.lines import closing_line
from moecheck.runner.plan import Plan
from moecheck.runner.pool import default_memory, full_size_memory
from moecheck.runner.run import KernelRun, Settings, Sink, in_order, run_all

Done = frozenset[tuple[str, str]]


class TaskLost(Exception):
    """A task's process or machine was lost again and again; the text says how."""


class Cluster(Protocol):
    """Where tasks run. cpus: cores of one task. has_gpu: whether any machine has a GPU."""

    @property
    def cpus(self) -> int: ...

    @property
    def has_gpu(self) -> bool: ...

    def submit(self, function: Callable[..., Any], /, *args: Any, gpu: bool = False) -> Future[Any]:
        """Call a module's function there, with a GPU of its own or without one.

        The future raises what the function raises, or TaskLost. Arguments and the result are pickled.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run was started, as far as its kernels see it.

    folder: the current one; a machine that does not have it stays in its own (a copy of it that the cluster made).
    variables: environment variables that begin with MOECHECK_.
    """

    folder: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Place:
        own = {name: value for name, value in os.environ.items() if name.startswith("MOECHECK_")}
        return cls(folder=os.getcwd(), variables=own)

    def take(self) -> None:
        """Make this process stand there; before its first worker starts, which inherits it."""
        os.environ.update(self.variables)
        if Path(self.folder).is_dir():
            os.chdir(self.folder)


def discover_there(specs: Sequence[str], *, op: str | None, backend: str | None, cluster: Cluster) -> Discovery:
    """`discover` on a machine of the cluster, one with a GPU where there is any: kernels run there, not here."""
    found: Discovery = cluster.submit(
        _discover, Place.here(), tuple(specs), op, backend, cluster.cpus, gpu=cluster.has_gpu
    ).result()
    return found


def run_there(
    plans: Sequence[Plan], settings: Settings, sink: Sink, *, done: set[tuple[str, str]], cluster: Cluster
) -> list[KernelRun]:
    """`run_all` on a cluster: every plan a task. Findings reach the sink when their kernel has ended.

    A kernel whose task is lost for good gets ERROR for each of its cases.
    """
    place, tasks, runs = Place.here(), {}, []
    for plan in in_order(plans):
        own = frozenset((kernel, case) for kernel, case in done if kernel == plan.declaration.name)
        task = cluster.submit(_run, place, plan, replace(settings, jobs=1), own, gpu=plan.device == "cuda")
        tasks[task] = (plan, own)
    for task in as_completed(tasks):
        plan, own = tasks[task]
        try:
            groups, run = task.result()
        except TaskLost as error:
            groups, run = _lost(plan, own, error), KernelRun(plan=plan)
        for findings in groups:
            sink(plan, findings)
        runs.append(run)
    return runs


def _discover(place: Place, specs: tuple[str, ...], op: str | None, backend: str | None, cpus: int) -> Discovery:
    place.take()
    return discover(specs, op=op, backend=backend, memory=default_memory(tasks_of_machine(cpus)), jobs=max(cpus, 2))


def _run(place: Place, plan: Plan, settings: Settings, done: Done) -> tuple[list[list[Finding]], KernelRun]:
    place.take()
    groups: list[list[Finding]] = []
    sampled = any(case.sampled for case in plan.cases)
    memory = (full_size_memory if sampled else default_memory)(tasks_of_machine(settings.threads))
    here = replace(settings, memory=memory)
    (run,) = run_all([plan], here, lambda _, findings: groups.append(findings), done=set(done))
    return groups, run


def tasks_of_machine(cpus: int) -> int:
    """How many tasks of so many cores a machine runs at a time; they share its memory."""
    return max(1, (os.cpu_count() or 1) // cpus)


def _lost(plan: Plan, done: Done, error: TaskLost) -> list[list[Finding]]:
    message = f"Not run to its end: {error}"
    wanted = [case for case in plan.cases if (plan.declaration.name, case.id) not in done]
    return [[closing_line(plan, case, [], Verdict.ERROR, message)] for case in wanted]
