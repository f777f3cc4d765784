"""Runs planned kernels side by side and turns what they do into findings."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from threadpoolctl import threadpool_limits

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Finding, Judgement, Verdict, verdict_of
from moecheck.checks.judge import Judged, Limits, judge
from moecheck.identify import Identified
from moecheck.oracle import Oracle
from moecheck.report.picture import ErrorPicture, picture_of
from moecheck.runner.contract import Contract, contract_of
from moecheck.runner.diagnose import diagnosis_of
from moecheck.runner.input_store import shared_inputs
from moecheck.runner.plan import Plan, lacking
from moecheck.runner.pool import KernelPool, WorkerDied, WorkerTimeout
from moecheck.runner.relate import COMPILED, Reach, Relating, cases_to_relate
from moecheck.runner.shrink import shrink
from moecheck.runner.worker import Outcome, run_case, run_relation

WRONG = (Verdict.FAIL, Verdict.PROVEN_WRONG)
DIAGNOSED = ("values", "statistics", "routing", "weights")  # checks of outputs that a known bug may explain
IN_FLIGHT = 2  # the next case runs while this one is judged
MOST_DEATHS = 3  # after so many lost processes or exhausted memories the rest of the kernel's cases are not tried
SHRINK_SECONDS = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run. timeout: seconds for one call. memory: bytes for one process. threads: of one process.

    shrink: look for smaller cases that fail. draw_all: make a picture also where nothing failed. relations: on which
    cases all metamorphic relations are tried. require: store -> the narrowest format that a kernel may use there,
    whatever it declares.
    """

    limits: Limits = field(default_factory=Limits)
    timeout: float = 20.0
    memory: int = 8 << 30
    jobs: int = 2
    threads: int = 1
    shrink: bool = True
    draw_all: bool = False
    relations: Reach = "few"
    require: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class KernelRun:
    """What is kept of one kernel's run.

    failing: the smallest case found that fails. seconds: wall time. identified: the contract that explains its outputs
    best, where they have one. diagnosis: which known bug its failure looks like, in words.
    """

    plan: Plan
    seconds: float = 0.0
    failing: Case | None = None
    identified: Identified | None = None
    diagnosis: str = ""
    picture: ErrorPicture | None = None


class Sink(Protocol):
    """Receives the findings of each kernel x case as soon as they are known; called from several threads."""

    def __call__(self, plan: Plan, findings: list[Finding]) -> None: ...


def run_all(plans: list[Plan], settings: Settings, sink: Sink, *, done: set[tuple[str, str]]) -> list[KernelRun]:
    """Run every plan, `settings.jobs` at a time. done: (kernel, case id) pairs that need not run again."""
    # Interpreted and compiled kernels take longest; started first they do not leave a core idle at the end.
    order = sorted(plans, key=lambda plan: (not plan.interpreted, plan.declaration.backend not in COMPILED))
    with tempfile.TemporaryDirectory(prefix="moecheck-inputs-") as store:
        oracle = Oracle(load=lambda case: shared_inputs(case, store))
        pools: list[KernelPool] = []
        # The kernels' processes run meanwhile: a matrix product with more threads than cores only waits for them.
        with (
            threadpool_limits(max(1, settings.threads - 1), "blas"),
            ThreadPoolExecutor(max_workers=settings.jobs) as threads,
        ):
            runs = threads.map(
                lambda plan: run_kernel(plan, settings, sink, oracle=oracle, done=done, store=store, pools=pools), order
            )
            try:
                return list(runs)
            except BaseException:  # Ctrl-C: do not wait for the calls that are running
                threads.shutdown(wait=False, cancel_futures=True)
                for pool in pools:
                    pool.interrupt()
                raise


def run_kernel(
    plan: Plan,
    settings: Settings,
    sink: Sink,
    *,
    oracle: Oracle,
    done: set[tuple[str, str]],
    store: str | None = None,
    pools: list[KernelPool] | None = None,
) -> KernelRun:
    """Run one kernel on its cases in a process of its own. pools: where to note the process for who may stop it."""
    start = time.monotonic()
    run = KernelRun(plan=plan)
    name = plan.declaration.name
    wanted = [case for case in plan.cases if (name, case.id) not in done]
    runnable = []
    for case in wanted:
        reason = lacking(plan.declaration, case)
        if reason is None:
            runnable.append(case)
        else:
            sink(plan, [_closing(plan, case, [], Verdict.SKIP, reason)])
    for case in plan.left_out:
        if (name, case.id) not in done:
            sink(plan, [_closing(plan, case, [], Verdict.SKIP, plan.left_out_reason)])
    if runnable:
        with KernelPool(memory=settings.memory, threads=settings.threads, store=store) as pool:
            if pools is not None:
                pools.append(pool)
            _KernelLoop(run=run, cases=runnable, settings=settings, sink=sink, oracle=oracle, pool=pool).go()
    run.seconds = time.monotonic() - start
    return run


@dataclass(slots=True, kw_only=True)
class _KernelLoop:
    """The state of one kernel's run: its process, its contract, and the worst that it did.

    cases: those that it can take. contract: what its outputs are judged under, known after the first of them.
    reported: the findings of each case.
    """

    run: KernelRun
    cases: Sequence[Case]
    settings: Settings
    sink: Sink
    oracle: Oracle
    pool: KernelPool
    deaths: int = 0
    worst: tuple[tuple[bool, float], Case, Judged] | None = None
    failed: list[tuple[Case, Judged]] = field(default_factory=list)
    contract: Contract | None = None
    reported: dict[Case, list[Finding]] = field(default_factory=dict)
    relating: Relating = field(init=False)

    def __post_init__(self) -> None:
        full = cases_to_relate(self.run.plan, self.cases, self.settings.relations)
        self.relating = Relating(plan=self.run.plan, oracle=self.oracle, call=self._relation_outcomes, full=full)

    def go(self) -> None:
        waiting = deque(self.cases)
        flying: deque[tuple[Case, object]] = deque()
        stopped = None
        while waiting or flying:
            while waiting and len(flying) < IN_FLIGHT and stopped is None:
                case = waiting.popleft()
                flying.append((case, self._submit(case)))
            if flying:
                case, future = flying.popleft()
                verdict = self._finish(case, self._outcome(future))
                if verdict is Verdict.TIMEOUT:
                    stopped = f"not run: the kernel timed out on {case.id}"
                elif self.deaths >= MOST_DEATHS:
                    stopped = f"not run: the kernel lost its process or ran out of memory {self.deaths} times"
                while flying and stopped is not None:
                    case, future = flying.pop()
                    self.pool.cancel(future)
                    waiting.appendleft(case)
            elif stopped is not None:
                case = waiting.popleft()
                self.sink(self.run.plan, [_closing(self.run.plan, case, [], Verdict.SKIP, stopped)])
        self._tell_unverified()
        if self.failed:
            self.run.failing = self._shrunk() if self.settings.shrink else self.failed[0][0]
            self._diagnose()
        if self.worst is not None and (self.failed or self.settings.draw_all):
            _, case, judged = self.worst
            self.run.picture = draw(self.run.plan.declaration.name, case, judged)

    def _submit(self, case: Case) -> object:
        # A fresh process imports the kernel first; twice what that took elsewhere is not counted as the kernel's.
        timeout = self.settings.timeout + 2 * self.run.plan.import_seconds
        return self.pool.submit(run_case, self.run.plan.target, case, timeout=timeout)

    def _relation_outcomes(self, case: Case, name: str, count: int) -> list[Outcome]:
        """What the `count` further calls of a relation do, up to the first that has a problem."""
        timeout = self.settings.timeout * count + 2 * self.run.plan.import_seconds
        return self._outcomes(self.pool.submit(run_relation, self.run.plan.target, case, name, timeout=timeout))

    def _outcome(self, future: object) -> Outcome:
        return self._outcomes(future)[0]

    def _outcomes(self, future: object) -> list[Outcome]:
        try:
            result = self.pool.wait(future)
            outcomes = result if isinstance(result, list) else [result]
            self.deaths += sum(outcome.exhausted for outcome in outcomes)
            return outcomes
        except WorkerTimeout:
            return [Outcome(problem=(Verdict.TIMEOUT, f"No result after {self.settings.timeout:g} s; it was stopped."))]
        except WorkerDied as error:
            self.deaths += 1
            return [Outcome(problem=(Verdict.CRASH, str(error)))]

    def _finish(self, case: Case, outcome: Outcome) -> Verdict:
        judged = self._judge(case, outcome, self.relating.names(case))
        verdict = verdict_of(judged.judgements)
        findings = _findings(self.run.plan, case, judged, verdict, outcome.seconds)
        self.sink(self.run.plan, findings)
        self.reported[case] = findings
        if verdict in FAILURES:
            self.failed.append((case, judged))
        self._remember(case, judged, verdict)
        return verdict

    def _judge(self, case: Case, outcome: Outcome, relations: Sequence[str]) -> Judged:
        """All checks of one case, the named relations too where the others pass."""
        if outcome.problem is not None:
            verdict, message = outcome.problem
            return Judged(judgements=(Judgement(check="run", verdict=verdict, message=message),))
        first = self.contract is None
        declaration, contract = self.run.plan.declaration, self._contract()
        judged = judge(
            case,
            outcome.outputs,
            self.oracle,
            self.settings.limits,
            contract.numerics,
            tie=declaration.tie,
            declared=declaration.numerics is not None,
        )
        self.relating.note(judged.judgements)
        more = [contract.judgement] if first and contract.judgement is not None else []
        causes = []  # told first: what a kernel writes over it may compute wrongly from
        if outcome.modified:
            names = ", ".join(outcome.modified)
            message = f"It changed its input {names}."
            causes.append(Judgement(check="unmodified", verdict=Verdict.PROVEN_WRONG, message=message))
        if verdict_of(judged.judgements) is Verdict.PASS and not outcome.modified:
            more += self.relating.judge(case, relations, outcome.outputs, contract.numerics)
        return Judged(judgements=(*causes, *judged.judgements, *more), out=judged.out, values=judged.values)

    def _contract(self) -> Contract:
        """What the outputs are judged under, found by a few small calls before the first of them is judged."""
        if self.contract is None:
            self.contract = contract_of(
                self.run.plan.declaration,
                lambda case: self._outcome(self._submit(case)),
                self.oracle,
                require=self.settings.require,
            )
            self.run.identified = self.contract.identified
        return self.contract

    def _remember(self, case: Case, judged: Judged, verdict: Verdict) -> None:
        """Keep the run with the largest z, a failing one before any that passes."""
        if judged.out is None or judged.values is None or not judged.out.size:
            return
        z = max((j.numbers.get("max_z", 0.0) for j in judged.judgements), default=0.0)
        rank = (verdict in FAILURES, z)
        if self.worst is None or rank > self.worst[0]:
            self.worst = (rank, case, judged)

    def _shrunk(self) -> Case:
        """The smallest case that fails in the same way; hangs and lost processes are not tried again."""
        shrinkable = [
            (case, wrong)
            for case, judged in self.failed
            if verdict_of(judged.judgements) in WRONG
            and (wrong := {j.check for j in judged.judgements if j.verdict in WRONG} - {"numerics"})
        ]
        if not shrinkable:
            return self.failed[0][0]
        case, wrong = shrinkable[0]
        relations = tuple(name for name in self.relating.names(case) if name in wrong)

        def fails(case: Case) -> bool:
            if lacking(self.run.plan.declaration, case) is not None:
                return False
            return verdict_of(self._judge(case, self._outcome(self._submit(case)), relations).judgements) in WRONG

        return shrink(case, fails, seconds=SHRINK_SECONDS)

    def _diagnose(self) -> None:
        """Which known bug the wrong outputs look like; one finding more."""
        verdicts = {
            case: verdict_of(judged.judgements)
            for case, judged in self.failed
            if any(j.check in DIAGNOSED and j.verdict in WRONG for j in judged.judgements)
        }
        found = diagnosis_of(
            tuple(verdicts), lambda case: self._outcome(self._submit(case)), self.oracle, self._contract().numerics
        )
        if found is None:
            return
        case, self.run.diagnosis = found
        self._add(
            case,
            Judgement(check="diagnosis", verdict=verdicts[case], message=self.run.diagnosis),
            diagnosis=self.run.diagnosis,
        )

    def _tell_unverified(self) -> None:
        """One finding more where a declared capability was never put to the test."""
        flags = self.relating.unverified()
        if not flags or self.relating.last is None:
            return
        message = f"It declares {', '.join(flags)}, and no case of this run could verify that."
        numbers = {f"{flag}_unverified": 1.0 for flag in flags}
        verdict = Verdict.PASS
        self._add(
            self.relating.last,
            Judgement(check="capabilities", verdict=verdict, message=message, numbers=numbers),
        )

    def _add(self, case: Case, judgement: Judgement, *, diagnosis: str = "") -> None:
        """One finding more of a case that was reported: its findings again with this one before the closing line."""
        *lines, closing = self.reported[case]
        line = replace(_line(self.run.plan, case, judgement), diagnosis=diagnosis)
        self.reported[case] = [*lines, line, closing]
        self.sink(self.run.plan, self.reported[case])


def draw(kernel: str, case: Case, judged: Judged) -> ErrorPicture:
    """The picture of one run's error against what rounding allows."""
    from moecheck.bounds import z_limit

    assert judged.out is not None
    assert judged.values is not None
    allowed = z_limit(judged.out.size) * judged.values.sigma
    return picture_of(judged.out, judged.values.true, allowed, kernel=kernel, case=case.id)


def _findings(plan: Plan, case: Case, judged: Judged, verdict: Verdict, seconds: float) -> list[Finding]:
    lines = [_line(plan, case, judgement) for judgement in judged.judgements]
    reasons = [line.message for line in lines if line.verdict is verdict and line.message]
    message = "" if verdict is Verdict.PASS else (reasons[0] if reasons else "")
    return [*lines, _closing(plan, case, lines, verdict, message, seconds=seconds)]


def _line(plan: Plan, case: Case, judgement: Judgement) -> Finding:
    return Finding(
        kernel=plan.declaration.name,
        case=case.id,
        check=judgement.check,
        verdict=judgement.verdict,
        message=judgement.message,
        numbers=judgement.numbers,
        where=judgement.where,
        facts=judgement.facts,
    )


def _closing(
    plan: Plan, case: Case, lines: list[Finding], verdict: Verdict, message: str, *, seconds: float = 0.0
) -> Finding:
    where = next((line.where for line in lines if line.verdict is verdict and line.where), {})
    return Finding(
        kernel=plan.declaration.name,
        case=case.id,
        check="case",
        verdict=verdict,
        message=message,
        where=where,
        seconds=seconds,
    )
