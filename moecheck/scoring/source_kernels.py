"""Runs real kernels with a bug in their source, each in its own process, as `moecheck kernels` runs a user's file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from threadpoolctl import threadpool_limits

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict, verdict_of
from moecheck.checks.judge import judge
from moecheck.curated import OWN_ROWS, cases_for
from moecheck.curated_ranks import RESCHEDULED
from moecheck.kernel import Declaration
from moecheck.oracle import Oracle
from moecheck.relations.relation import relations
from moecheck.runner.judges import Here
from moecheck.runner.plan import Plan, lacking
from moecheck.runner.pool import KernelPool, WorkerDied, WorkerTimeout, default_memory, start_context
from moecheck.runner.relate import Relating, cases_to_relate
from moecheck.runner.target import Target
from moecheck.runner.worker import Outcome, inspect_module, inspect_target, run_case, run_relation

from .result import KERNELS, MutantScore
from .rewrite import Replacement, Rewrite, replaced, rewritten
from .sources import SourceMutant
from .verdicts import LIMITS, names_of

TIMEOUT = 60.0
IMPORT_TIMEOUT = 120.0
CUDA = "cuda/"


@dataclass(slots=True)
class Outcomes:
    """What became of real kernels. alarms: kernel -> what was said of it although it is right."""

    scores: list[MutantScore] = field(default_factory=list)
    alarms: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """One kernel on the cases of one seed. checks: that failed on the first case that does, seen_on. skipped: why."""

    checks: frozenset[str] = frozenset()
    seen_on: str = ""
    message: str = ""
    skipped: str = ""
    seconds: float = 0.0


def kernel_trials(
    mutants: tuple[SourceMutant, ...],
    *,
    seeds: int,
    jobs: int,
    advance: Callable[[str, int, int], None] | None = None,
    with_baselines: bool = True,
) -> Outcomes:
    """Every mutant on its op's cases, seed by seed, up to the first case that fails; and the kernels as they are."""
    found = Outcomes()
    start_context()  # once, before threads ask for it
    baselines = {one.kernel: SourceMutant(name=one.kernel, words="", op=one.op, kernel=one.kernel, file=one.file,
                                          rewrites=()) for one in mutants} if with_baselines else {}  # fmt: skip
    if any(one.file.startswith(CUDA) for one in mutants):
        reason = _why_no_cuda()
        if reason is not None:
            found.skipped |= {one.name: reason for one in mutants if one.file.startswith(CUDA)}
            mutants = tuple(one for one in mutants if not one.file.startswith(CUDA))
            baselines = {name: one for name, one in baselines.items() if not one.file.startswith(CUDA)}
    jobs_list = [*((one, seeds) for one in mutants), *((one, 1) for one in baselines.values())]
    with tempfile.TemporaryDirectory(prefix="moecheck-mutants-") as folder, threadpool_limits(1, "blas"):
        places = {one.name: plant(one, Path(folder)) for one, _ in jobs_list}
        with ThreadPoolExecutor(max_workers=jobs) as threads:
            results = threads.map(lambda job: tried(job[0], places[job[0].name], job[1]), jobs_list)
            for number, ((one, count), trials) in enumerate(zip(jobs_list, results, strict=True), start=1):
                found.cpu_seconds += sum(trial.seconds for trial in trials)
                _file(one, count, trials, found)
                if advance is not None:
                    advance(KERNELS, number, len(jobs_list))
    return found


def _why_no_cuda() -> str | None:
    """Why CUDA kernels cannot run here, asked once for all of them; importing them builds them."""
    with KernelPool(memory=default_memory(2), threads=1) as pool:
        try:
            loaded = pool.wait(pool.submit(inspect_module, "moecheck.kernels.cuda.rows", timeout=IMPORT_TIMEOUT))
        except (WorkerTimeout, WorkerDied) as error:
            return f"its build ends without a result: {error}"
    reason: str | None = loaded.skip or loaded.error
    return reason


def _file(one: SourceMutant, seeds: int, trials: list[_Trial], found: Outcomes) -> None:
    skipped = next((trial.skipped for trial in trials if trial.skipped), "")
    if skipped:
        found.skipped[one.name] = skipped
        return
    if not one.rewrites:
        wrong = next((trial for trial in trials if trial.checks), None)
        if wrong is not None:
            found.alarms[one.name] = f"{one.name} as it is fails on {wrong.seen_on}: {wrong.message}"
        return
    caught = sum(bool(trial.checks) for trial in trials)
    found.scores.append(
        MutantScore(
            id=one.name,
            kind=KERNELS,
            words=one.words,
            sources=one.sources,
            ops=(one.op,),
            seeds=seeds,
            caught={one.op: caught},
            checks=tuple(sorted({check for trial in trials for check in trial.checks})),
            expected=one.expected,
            seen_on=next((trial.seen_on for trial in trials if trial.seen_on), ""),
            why="" if caught == seeds else one.unseen or f"caught in {caught} of {seeds} seeds",
        )
    )


def plant(one: SourceMutant, folder: Path) -> str:
    """Copy the kernels' sources into a package of their own below `folder`, one file rewritten.

    Returns the mutant's kernel as PATH.py:FUNCTION.
    """
    name = f"planted_{abs(hash(one.name)):x}"
    package, originals = folder / name / name, _sources()
    for part in ("torch", "triton", "cuda", "jax", "pallas_tpu"):
        shutil.copytree(originals / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    if one.rewrites:
        file = package / one.file
        file.write_text(changed(file.read_text(encoding="utf-8"), one), encoding="utf-8")
    module, _, function = one.kernel.partition(":")
    shim = folder / name / "kernel.py"
    shim.write_text(f"from {name}.{module} import {function} as kernel\n", encoding="utf-8")
    return f"{shim}:kernel"


def changed(text: str, one: SourceMutant) -> str:
    """The mutant's file as it is with the bug. HarnessError where the bug no longer fits."""
    if all(isinstance(rewrite, Rewrite) for rewrite in one.rewrites):
        return rewritten(text, tuple(r for r in one.rewrites if isinstance(r, Rewrite)))
    return replaced(text, tuple(r for r in one.rewrites if isinstance(r, Replacement)))


def _sources() -> Path:
    import moecheck.kernels

    package: ModuleType = moecheck.kernels
    return Path(next(iter(package.__path__))).resolve()


def tried(one: SourceMutant, place: str, seeds: int) -> list[_Trial]:
    """What became of a planted kernel on its op's cases, seed by seed."""
    with KernelPool(memory=default_memory(2), threads=1) as pool:
        target = Target(spec_string=place, op=one.op, name=one.name)
        try:
            loaded = pool.wait(pool.submit(inspect_target, target, timeout=IMPORT_TIMEOUT))
        except (WorkerTimeout, WorkerDied) as error:
            return [_Trial(checks=frozenset({"run"}), seen_on="import", message=str(error))] * seeds
        problem = loaded.usage or loaded.error or loaded.skip
        if problem:
            return [_Trial(skipped=problem)]
        declaration = loaded.declarations[0]
        device = loaded.devices[declaration.name]
        # Where no failure ends the search early a shorter one must do.
        profile = "default" if one.rewrites and not one.unseen else "quick"
        return [_seed(pool, target, declaration, device, profile, seed) for seed in range(seeds)]


def _seed(pool: KernelPool, target: Target, declaration: Declaration, device: str, profile: str, seed: int) -> _Trial:
    cases = [
        case
        for case in cases_for(
            declaration.op,
            profile=profile,
            seed=seed,
            small=device == "interpreter",
            specs=declaration.specs,
            dtypes=declaration.dtypes,
        )
        if lacking(declaration, case) is None
        and (declaration.op not in OWN_ROWS or case.name in RESCHEDULED)  # each is compiled for many seconds
    ]
    cases.sort(key=lambda case: (case.num_tokens > 0, case.elements, case.num_tokens))
    plan = Plan(target=target, declaration=declaration, device=device, cases=tuple(cases))
    seconds, oracle = 0.0, Oracle()
    passed: dict[Case, Outcome] = {}
    for case in cases:
        (outcome,) = _outcomes(pool, run_case, target, case)
        seconds += outcome.seconds
        trial = _judged(case, outcome, oracle, declaration)
        if isinstance(trial, _Trial):
            return _Trial(checks=trial.checks, seen_on=case.id, message=trial.message, seconds=seconds)
        if trial is Verdict.PASS:
            passed[case] = outcome
    return _related(pool, plan, passed, oracle, seconds)


def _judged(case: Case, outcome: Outcome, oracle: Oracle, declaration: Declaration) -> _Trial | Verdict:
    """What failed, or the verdict of a case that did not."""
    if outcome.problem is not None:
        verdict, message = outcome.problem
        return _Trial(checks=frozenset({"run"}), message=message) if verdict in FAILURES else verdict
    if outcome.modified:
        return _Trial(checks=frozenset({"unmodified"}), message=f"it changed {', '.join(outcome.modified)}")
    judged = judge(
        case,
        outcome.outputs,
        oracle,
        LIMITS,
        declaration.numerics,
        tie=declaration.tie,
        declared=declaration.numerics is not None,
    ).judgements
    if verdict_of(judged) not in FAILURES:
        return verdict_of(judged)
    failing = [one for one in judged if one.verdict in FAILURES]
    return _Trial(checks=frozenset(name for one in failing for name in names_of(one, case)), message=failing[0].message)


def _related(pool: KernelPool, plan: Plan, passed: dict[Case, Outcome], oracle: Oracle, seconds: float) -> _Trial:
    """The metamorphic relations, on the cases on which a run of kernels tries them."""
    few = frozenset[Case]() if plan.declaration.op in OWN_ROWS else cases_to_relate(plan, tuple(passed), "few")

    def call(case: Case, name: str, count: int) -> list[Outcome]:
        return _outcomes(pool, run_relation, plan.target, case, name, timeout=TIMEOUT * count)

    relating = Relating(plan=plan, judging=Here(oracle), call=call, full=few)
    for case in passed:
        names = tuple(name for name in relations() if name in relating.names(case))
        for judgement in relating.judge(case, names, passed[case].outputs, plan.declaration.numerics):
            if judgement.verdict in FAILURES:
                return _Trial(
                    checks=frozenset({f"relation: {judgement.check}"}),
                    seen_on=case.id,
                    message=judgement.message,
                    seconds=seconds,
                )
    return _Trial(seconds=seconds)


def _outcomes(
    pool: KernelPool, function: Callable[..., object], target: Target, case: Case, *more: str, timeout: float = TIMEOUT
) -> list[Outcome]:
    try:
        result = pool.wait(pool.submit(function, target, case, *more, timeout=timeout + IMPORT_TIMEOUT))
    except WorkerTimeout:
        return [Outcome(problem=(Verdict.TIMEOUT, f"no result after {timeout:g} s"))]
    except WorkerDied as error:
        return [Outcome(problem=(Verdict.CRASH, str(error)))]
    return result if isinstance(result, list) else [result]
