"""Runs the score over processes: mutants in every op and seed, correct kernels, limits, real kernels, the checker."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from moecheck.errors import HarnessError
from moecheck.mutants import Mutant, all_mutants
from moecheck.mutants.bugs import sources_of
from moecheck.runner.cluster import Cluster, TaskLost
from moecheck.runner.leash import bind_one_of_many
from moecheck.runner.pool import start_context

from . import trials
from .checker import checker_mutants, checker_trial
from .corpus import corpus, ops_with_mutants, planted
from .coverage import Combination, coverage
from .cuda_sources import CUDA_MUTANTS
from .pallas_sources import PALLAS_MUTANTS
from .result import CHECKER, KERNELS, KILLED_SHARE, Alarms, Cell, Limits, MutantScore, Score
from .source_kernels import kernel_trials
from .sources import SOURCE_MUTANTS
from .trials import COUNTS, FACTOR_BITS, SIGMAS, Judging, Kill, Seen
from .variants import CLASSES

PARTS = {"fused_experts": 4, "moe_layer": 6, "topk_routing": 2}  # tasks that share an op's cases, where all are tried
CHUNK = 20  # correct kernels a task
REAL_KERNELS = (*SOURCE_MUTANTS, *CUDA_MUTANTS, *PALLAS_MUTANTS)
UNDECLARED = "mutants in kernels that say nothing"
# Profile whose cases these are tried on: many stay unseen, which takes all cases to find out.
UNDECLARED_CASES = {"quick": "quick", "default": "default", "nightly": "default"}
# Profile whose cases are all tried in the first seed: the named ones are enough to tell who sees what, and where.
ALL_CASES = {"quick": "quick", "default": "quick", "nightly": "default"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. mutants, ops: only these, all where empty. seeds: of each mutant. legal: correct kernels a class.

    limit_seeds: of the limits, 0 for none. undeclared_seeds: of each mutant in kernels that say nothing. everything:
    also correct kernels and the checker. all_cases: whether the first seed is tried on every case, which tells all
    checks that see a mutant, and where it dies; without it these are known of the first case that it dies on.
    """

    profile: str
    seeds: int
    legal: int
    limit_seeds: int
    kernel_seeds: int
    undeclared_seeds: int = 0
    mutants: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    jobs: int = 2
    everything: bool = True
    all_cases: bool = True


PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 3, "legal": 40, "limit_seeds": 0, "kernel_seeds": 1, "all_cases": False},
    "default": {"seeds": 20, "legal": 320, "limit_seeds": 20, "kernel_seeds": 1, "undeclared_seeds": 3},
    "nightly": {"seeds": 20, "legal": 1000, "limit_seeds": 20, "kernel_seeds": 3, "undeclared_seeds": 5},
}


@dataclass(slots=True)
class _Found:
    kills: list[Kill] = field(default_factory=list)
    all_cases: list[Kill] = field(default_factory=list)
    undeclared: list[Kill] = field(default_factory=list)
    judged: list[Judging] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    others: list[MutantScore] = field(default_factory=list)
    baselines: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def known_names() -> set[str]:
    """Every mutant's id, and its name where it has variants."""
    names = {name for one in all_mutants() for name in (one.id, one.name)}
    return names | {one.name for one in REAL_KERNELS} | {one.name for one in checker_mutants()}


Advance = Callable[[str, int, int], None]


def run_score(
    plan: Plan, *, command: str, git: str | None, advance: Advance | None = None, cluster: Cluster | None = None
) -> Score:
    """Run a plan. advance: told (what, done, of how many) whenever a task ends.

    cluster: where to run all but the real kernels, which are run here; None for processes of this machine.
    """
    start, started = time.monotonic(), datetime.now(UTC)
    chosen = tuple(one for one in all_mutants() if _wanted(one, plan))
    found = _Found()
    with _processes(plan.jobs) if cluster is None else nullcontext(cluster) as pool:
        futures: dict[Future[Any], str] = {}
        for name, call in _tasks(plan, chosen):
            futures[pool.submit(_timed, *call)] = name
        total = len(futures)
        for done, future in enumerate(as_completed(futures), start=1):
            try:
                result, seconds = future.result()
            except TaskLost as error:
                raise HarnessError(f"A task of the score was not run to its end: {error}") from error
            found.cpu[futures[future]] += seconds
            _file(futures[future], result, found)
            if advance is not None:
                advance(futures[future], done, total)
    _real_kernels(plan, found, advance)
    scores = [_scored(one, plan, found) for one in chosen] + found.others
    return Score(
        profile=plan.profile,
        seeds=plan.seeds,
        command=command,
        mutants=tuple(scores),
        alarms=tuple(_alarms(name, found.judged) for name in CLASSES if any(j.name == name for j in found.judged)),
        limits=tuple(_limits(name, found.seen) for name in CLASSES if any(s.name == name for s in found.seen)),
        coverage=_matrix(plan, chosen, found),
        baselines=found.baselines,
        skipped=found.skipped,
        seconds=time.monotonic() - start,
        cpu_seconds=sum(found.cpu.values()),
        cpu_by_part=dict(found.cpu),
        started=started.isoformat(timespec="seconds"),
        git=git,
    )


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, also when it is killed."""
    context = start_context()
    leash, hand = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=bind_one_of_many, initargs=(leash,))
    with leash, hand, pool:
        yield pool


def _wanted(one: Mutant, plan: Plan) -> bool:
    named = not plan.mutants or one.id in plan.mutants or one.name in plan.mutants
    return named and (not plan.ops or bool(one.ops & set(plan.ops)))


def _tasks(plan: Plan, chosen: tuple[Mutant, ...]) -> Iterable[tuple[str, tuple[Any, ...]]]:
    """(kind, function and arguments) of every task, the longest first."""
    ops = [op for op in ops_with_mutants() if not plan.ops or op in plan.ops]
    for op in ops:
        ids = tuple(one.id for one in chosen if op in one.ops)
        parts = PARTS.get(op, 1)
        if ids and plan.all_cases:
            for part in range(parts):
                yield "checks", (trials.kills, op, ALL_CASES[plan.profile], 0, ids, part, parts, "declared")
    for op in ops:
        ids = tuple(one.id for one in chosen if op in one.ops)
        if ids:
            for seed in range(plan.seeds):
                yield "mutants", (trials.kills, op, plan.profile, seed, ids, 0, 0, "declared")
            for seed in range(plan.undeclared_seeds):
                yield UNDECLARED, (trials.kills, op, UNDECLARED_CASES[plan.profile], seed, ids, 0, 0, "unknown")
    for one in checker_mutants():
        if plan.everything or one.name in plan.mutants:
            yield "checker", (checker_trial, one.name)
    if not plan.everything:
        return
    yield "checker", (checker_trial, "")
    for name in CLASSES:
        for first in range(0, plan.legal, CHUNK):
            numbers = tuple(range(first, min(first + CHUNK, plan.legal)))
            yield "correct kernels", (trials.alarms, name, numbers)
        for seed in range(plan.limit_seeds):
            yield "limits", (trials.limits, name, seed)


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.process_time()
    return function(*arguments), time.process_time() - start


def _file(kind: str, result: Any, found: _Found) -> None:
    if kind == "mutants":
        found.kills += result
    elif kind == "checks":
        found.all_cases += result
    elif kind == UNDECLARED:
        found.undeclared += result
    elif kind == "correct kernels":
        found.judged.append(result)
    elif kind == "limits":
        found.seen.append(result)
    elif isinstance(result, MutantScore):
        found.others.append(result)
    elif result:  # the checker as it is fails its own corpus
        found.baselines["the checker's own corpus"] = f"moecheck as it is judges wrongly: {'; '.join(result)}"


def _real_kernels(plan: Plan, found: _Found, advance: Advance | None) -> None:
    wanted = [one for one in REAL_KERNELS if not plan.mutants or one.name in plan.mutants]
    wanted = [one for one in wanted if not plan.ops or one.op in plan.ops]
    if not (plan.mutants or plan.ops or plan.profile == "nightly"):  # each is compiled for many seconds
        wanted = [one for one in wanted if one not in PALLAS_MUTANTS]
    if not wanted:
        return
    start = time.process_time()
    outcome = kernel_trials(
        tuple(wanted), seeds=plan.kernel_seeds, jobs=plan.jobs, advance=advance, with_baselines=plan.everything
    )
    found.others += outcome.scores
    found.baselines |= outcome.alarms
    found.skipped |= outcome.skipped
    found.cpu[KERNELS] += time.process_time() - start + outcome.cpu_seconds


def _scored(one: Mutant, plan: Plan, found: _Found) -> MutantScore:
    own = [kill for kill in found.kills if kill.mutant == one.id]
    everywhere = [kill for kill in found.all_cases or found.kills if kill.mutant == one.id]
    ops = tuple(op for op in ops_with_mutants() if op in one.ops and (not plan.ops or op in plan.ops))
    caught = {op: sum(kill.caught for kill in own if kill.op == op) for op in ops}
    never = tuple(op for op in ops if not any(kill.cases for kill in own if kill.op == op))
    silent = [kill for kill in found.undeclared if kill.mutant == one.id]
    score = MutantScore(
        id=one.id,
        kind=one.kind,
        words=one.words,
        sources=sources_of(one.id, one.sources),
        ops=ops,
        seeds=plan.seeds,
        caught=caught,
        never=never,
        checks=tuple(sorted({check for kill in everywhere for check in kill.checks})),
        expected=one.expected if plan.all_cases else (),
        seen_on=next((kill.seen_on for kill in own if kill.seen_on), ""),
        equivalent=one.equivalent,
        differed=any(kill.differed or kill.caught for kill in [*own, *everywhere]) if one.equivalent else False,
        undeclared={op: sum(k.caught for k in silent if k.op == op) for op in ops if any(k.op == op for k in silent)},
        undeclared_seeds=plan.undeclared_seeds,
    )
    return replace(score, why=_why(score, own)) if score.survived else score


def _why(score: MutantScore, own: list[Kill]) -> str:
    """What is known of a survivor."""
    if score.never:
        return f"no case of {', '.join(score.never)} in this profile gives it a meaning"
    weak = [op for op in score.ops if score.caught.get(op, 0) < KILLED_SHARE * score.seeds]
    missed = next((kill for kill in own if not kill.caught and kill.op in weak and kill.least), None)
    told = ", ".join(f"{op} {score.caught.get(op, 0)} of {score.seeds} seeds" for op in weak)
    return f"caught in {told}" + (f"; it passes {missed.least} of seed {missed.seed}, for example" if missed else "")


def _alarms(name: str, judged: list[Judging]) -> Alarms:
    own = [one for one in judged if one.name == name]
    return Alarms(
        name=name,
        trials=sum(len(one.numbers) for one in own),
        variants=len(frozenset[str]().union(*(one.variants for one in own))),
        alarms=tuple(text for one in own for text in one.alarms),
        undecided=sum(one.undecided for one in own),
    )


def _limits(name: str, seen: list[Seen]) -> Limits:
    own = [one for one in seen if one.name == name]

    def share(which: str, value: float) -> float:
        return sum(value in getattr(one, which) for one in own) / len(own)

    factors = [bits for bits in FACTOR_BITS if share("factors", bits) >= KILLED_SHARE]
    sigmas = [size for size in SIGMAS if share("sigmas", size) >= KILLED_SHARE]
    counts = [count for count in COUNTS if share("counts", count) >= KILLED_SHARE]
    return Limits(
        name=name,
        factor=2.0 ** -max(factors) if factors else None,
        sigmas=min(sigmas) if sigmas else None,
        elements=min(counts) if counts else None,
        curve={f"1 + 2^-{bits}": share("factors", bits) for bits in FACTOR_BITS},
    )


def _matrix(plan: Plan, chosen: tuple[Mutant, ...], found: _Found) -> tuple[Cell, ...]:
    died: dict[str, frozenset[Combination]] = {}
    for kill in found.all_cases or found.kills:
        died[kill.mutant] = died.get(kill.mutant, frozenset()) | kill.died_on
    cases = [
        (case, group.variant.contract)
        for op in ops_with_mutants()
        if not plan.ops or op in plan.ops
        for group in planted(op, 0, chosen)
        for case in corpus(op, ALL_CASES[plan.profile], 0)
    ]
    return coverage(cases, died.items())


__all__ = ["CHECKER", "KERNELS", "PROFILES", "Plan", "run_score"]
