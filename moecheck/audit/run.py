"""Runs audits: of one criterion on a case, of a preset, of all presets, and of all criteria on the same outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context

from pebble import ProcessPool
from threadpoolctl import threadpool_limits

from moecheck.cases import Case
from moecheck.errors import UsageError
from moecheck.numerics import Numerics

from .corpus import corpus, hindsight
from .criterion import Criterion
from .preset import Preset
from .recipe import Recipe
from .record import AuditRecord, Ranked, ranking, record_of
from .subject import Subject, subject_of
from .trial import Trial, examine

SEEDS = 3
Told = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One call and the criteria that are tried on it."""

    subject: Subject
    criteria: tuple[Criterion, ...]

    @property
    def cost(self) -> int:
        """A rough measure of how long it takes."""
        case = self.subject.case
        return case.elements + 4 * case.num_tokens * case.hidden_size * case.spec.routing.top_k


def audit(
    criterion: Criterion,
    case: Case,
    *,
    recipe: Recipe | None = None,
    seeds: int = SEEDS,
    contract: Numerics | None = None,
    jobs: int = 1,
    told: Told | None = None,
) -> AuditRecord:
    """What a criterion is worth on a case.

    recipe: its inputs' distributions; None for moecheck's own inputs. seeds: how many, from the case's own on.
    contract: where the kernel under test rounds; Triton's by default where the op has one. jobs: processes. told:
    called with how many calls are done, and of how many.
    """
    _check_seeds(seeds)
    subjects = [subject_of(replace(case, seed=case.seed + i), contract, recipe) for i in range(seeds)]
    trials = _examined([Task(subject=subject, criteria=(criterion,)) for subject in subjects], jobs, told)
    return record_of(
        name=case.op,
        source="your inputs" if recipe is not None else "moecheck's own inputs",
        scaled="",
        criteria=[criterion],
        op=case.op,
        dtype=case.dtype,
        trials=[[trial] for trial in trials],
        own=[],
    )


def audit_presets(
    presets: Sequence[Preset], *, seeds: int = SEEDS, seed: int = 0, jobs: int = 1, told: Told | None = None
) -> list[AuditRecord]:
    """The audits of several presets. told: called with how many calls are done, and of how many."""
    _check_seeds(seeds)
    tasks, places = list[Task](), list[tuple[int, str, int]]()
    for number, preset in enumerate(presets):
        for i in range(seeds):
            for setting in preset.settings:
                tasks.append(Task(subject=preset.subject(setting, seed + i), criteria=(preset.criterion_of(setting),)))
                places.append((number, "there", i))
            for own in preset.own_subjects(seed + i):
                tasks.append(Task(subject=own, criteria=(preset.criterion,)))
                places.append((number, "own", i))
    trials = _examined(tasks, jobs, told)
    found: dict[tuple[int, str, int], list[Trial]] = {}
    for place, trial in zip(places, trials, strict=True):
        found.setdefault(place, []).append(trial)
    return [
        record_of(
            name=preset.name,
            source=preset.source,
            scaled=preset.scaled,
            criteria=[preset.criterion_of(setting) for setting in preset.settings],
            op=preset.op,
            dtype=preset.dtype,
            trials=[found[number, "there", i] for i in range(seeds)],
            own=[found[number, "own", i] for i in range(seeds)],
        )
        for number, preset in enumerate(presets)
    ]


def rank(
    presets: Sequence[Preset], *, seeds: int = SEEDS, seed: int = 0, jobs: int = 1, told: Told | None = None
) -> list[Ranked]:
    """All presets' criteria, tolerances chosen with hindsight, and moecheck, on the outputs of the same kernels."""
    _check_seeds(seeds)
    named: dict[Criterion, str] = {}
    for preset in presets:
        for criterion in dict.fromkeys(preset.criterion_of(setting) for setting in preset.settings):
            named[criterion] = f"{named[criterion]}, {preset.name}" if criterion in named else preset.name
    for criterion in hindsight().values():
        named.setdefault(criterion, HINDSIGHT)
    criteria = tuple(named)
    cases = [corpus(seed + i) for i in range(seeds)]
    tasks = [Task(subject=subject_of(case), criteria=criteria) for some in cases for case in some]
    trials, size = _examined(tasks, jobs, told), len(cases[0])
    return ranking(list(named.values()), criteria, [trials[i * size : (i + 1) * size] for i in range(seeds)])


HINDSIGHT = "chosen with hindsight"


def _check_seeds(seeds: int) -> None:
    if seeds < 1:
        raise UsageError(f"seeds={seeds} must be at least 1.")


def _examined(tasks: Sequence[Task], jobs: int, told: Told | None) -> list[Trial]:
    """The trials in the order of the tasks; the longest are begun first."""
    results: dict[int, Trial] = {}
    order = sorted(range(len(tasks)), key=lambda i: -tasks[i].cost)
    with _workers(min(jobs, len(tasks))) as run:
        for i, trial in run([tasks[i] for i in order]):
            results[order[i]] = trial
            if told is not None:
                told(len(results), len(tasks))
    return [results[i] for i in range(len(tasks))]


@contextmanager
def _workers(jobs: int) -> Iterator[Callable[[list[Task]], Iterator[tuple[int, Trial]]]]:
    """A function that yields (number, trial) of each task as they are done."""
    if jobs <= 1:
        yield lambda tasks: ((i, _one(task)) for i, task in enumerate(tasks))
        return
    pool = ProcessPool(max_workers=jobs, context=get_context("spawn"))

    def run(tasks: list[Task]) -> Iterator[tuple[int, Trial]]:
        numbers: dict[Future[Trial], int] = {pool.schedule(_one, args=(task,)): i for i, task in enumerate(tasks)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()

    try:
        yield run
        pool.close()  # type: ignore[no-untyped-call]  # pebble leaves it untyped
    finally:
        pool.stop()  # type: ignore[no-untyped-call]  # as above
        pool.join()


def _one(task: Task) -> Trial:
    with threadpool_limits(1, "blas"):
        return examine(task.subject, task.criteria)
