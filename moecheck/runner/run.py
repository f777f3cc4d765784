"""Runs planned kernels side by side and turns what they do into findings."""

from __future__ import annotations

import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Finding, Judgement, Verdict, verdict_of
from moecheck.checks.judge import Limits
from moecheck.formats import AnyArray
from moecheck.kernel import Declaration
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.relations.all_tokens import CALLS
from moecheck.report.picture import ErrorPicture
from moecheck.runner.contract import Contract, contract_of
from moecheck.runner.diagnose import diagnosis_of
from moecheck.runner.foresee import foresee
from moecheck.runner.judges import JudgePool, Judging
from moecheck.runner.judging import all_tokens, judgements_of, picture
from moecheck.runner.lines import closing_line, findings_of, line_of
from moecheck.runner.plan import Plan, lacking
from moecheck.runner.pool import KernelPool, WorkerDied, WorkerTimeout
from moecheck.runner.relate import COMPILED, Reach, Relating, cases_to_relate
from moecheck.runner.shrink import shrink
from moecheck.runner.trials import judge_trials, run_trials, triable
from moecheck.runner.worker import Outcome, run_all_tokens, run_case, run_relation

WRONG = (Verdict.FAIL, Verdict.PROVEN_WRONG)
DIAGNOSED = ("values", "statistics", "routing", "weights")  # checks of outputs that a known bug may explain
IN_FLIGHT = 2  # the next case runs while this one is judged
MOST_DEATHS = 3  # after so many lost processes or exhausted memories the rest of the kernel's cases are not tried
SHRINK_SECONDS = 6.0

R = TypeVar("R")
Judgements = tuple[Judgement, ...]
# A function of moecheck.runner.judging that looks at one case's outputs under a contract.
Asked = Callable[[Oracle, Declaration, Case, tuple[AnyArray, ...], Limits, Numerics | None], R]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run. timeout: seconds for one call. memory: bytes for one process. threads: of one process.

    shrink: look for smaller cases that fail. draw_all: make a picture also where nothing failed. relations: on which
    cases all metamorphic relations are tried. require: store -> the narrowest format that a kernel may use there,
    whatever it declares. profile: note which device kernels are launched. device_trials: also call by graphs and on
    other streams.
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
    profile: bool = False
    device_trials: bool = True


@dataclass(slots=True, kw_only=True)
class KernelRun:
    """What is kept of one kernel's run.

    failing: the smallest case found that fails. seconds: wall time. diagnosis: which known bug its failure looks like,
    in words.
    """

    plan: Plan
    seconds: float = 0.0
    failing: Case | None = None
    diagnosis: str = ""
    picture: ErrorPicture | None = None


class Sink(Protocol):
    """Receives the findings of each kernel x case as soon as they are known; called from several threads."""

    def __call__(self, plan: Plan, findings: list[Finding]) -> None: ...


def run_all(plans: list[Plan], settings: Settings, sink: Sink, *, done: set[tuple[str, str]]) -> list[KernelRun]:
    """Run every plan, `settings.jobs` at a time. done: (kernel, case id) pairs that need not run again."""
    order = in_order(plans)
    large = any(case.sampled for plan in plans for case in plan.cases)  # one more judge, while one computes these
    with tempfile.TemporaryDirectory(prefix="moecheck-inputs-") as store:
        pools: list[KernelPool] = []
        # The kernels' processes run meanwhile: a matrix product with more threads than cores only waits for them.
        with (
            JudgePool(settings.jobs + large, store=store, threads=max(1, settings.threads - 1)) as judging,
            ThreadPoolExecutor(max_workers=settings.jobs) as threads,
        ):
            runs = threads.map(
                lambda plan: run_kernel(plan, settings, sink, judging=judging, done=done, store=store, pools=pools),
                order,
            )
            try:
                return list(runs)
            except BaseException:  # Ctrl-C: do not wait for the calls that are running
                threads.shutdown(wait=False, cancel_futures=True)
                for pool in pools:
                    pool.interrupt()
                judging.close()
                raise


def in_order(plans: Sequence[Plan]) -> list[Plan]:
    """Interpreted and compiled kernels, which take longest, first; then the ops by turns.

    Neighbours run side by side: of one op they would wait for the same results of the reference, one after another.
    """
    turn: Counter[str] = Counter()
    keys = []
    for plan in plans:
        turn[plan.declaration.op] += 1
        keys.append((not plan.interpreted, plan.declaration.backend not in COMPILED, turn[plan.declaration.op]))
    return [plan for _, plan in sorted(zip(keys, plans, strict=True), key=lambda pair: pair[0])]


def run_kernel(
    plan: Plan,
    settings: Settings,
    sink: Sink,
    *,
    judging: Judging,
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
            sink(plan, [closing_line(plan, case, [], Verdict.SKIP, reason)])
    for case in plan.left_out:
        if (name, case.id) not in done:
            sink(plan, [closing_line(plan, case, [], Verdict.SKIP, plan.left_out_reason)])
    if runnable:
        with KernelPool(memory=settings.memory, threads=settings.threads, store=store) as pool:
            if pools is not None:
                pools.append(pool)
            _KernelLoop(run=run, cases=runnable, settings=settings, sink=sink, judging=judging, pool=pool).go()
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
    judging: Judging
    pool: KernelPool
    deaths: int = 0
    worst: tuple[tuple[bool, float], Case, tuple[AnyArray, ...]] | None = None
    failed: list[tuple[Case, Judgements]] = field(default_factory=list)
    contract: Contract | None = None
    reported: dict[Case, list[Finding]] = field(default_factory=dict)
    relating: Relating = field(init=False)

    def __post_init__(self) -> None:
        full = cases_to_relate(self.run.plan, self.cases, self.settings.relations)
        self.relating = Relating(plan=self.run.plan, judging=self.judging, call=self._relation_outcomes, full=full)

    def go(self) -> None:
        waiting = deque(self.cases)
        flying: deque[tuple[Case, object]] = deque()
        stopped = None
        foresee(self.run.plan.declaration, self.cases, self.judging)
        while waiting or flying:
            while waiting and len(flying) < IN_FLIGHT and stopped is None:
                case = waiting.popleft()
                flying.append((case, self._submit(case)))
            if flying:
                case, future = flying.popleft()
                verdict = self._finish(case, self._outcomes(future)[0])
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
                self.sink(self.run.plan, [closing_line(self.run.plan, case, [], Verdict.SKIP, stopped)])
        self._tell_unverified()
        if self.failed:
            self.run.failing = self._shrunk() if self.settings.shrink else self.failed[0][0]
            self._diagnose()
        if self.worst is not None and (self.failed or self.settings.draw_all):
            _, case, outputs = self.worst
            self.run.picture = self._ask(picture, case, outputs)

    def _submit(self, case: Case) -> object:
        noted = self.settings.profile or (self.settings.device_trials and case in self.relating.full)
        profile = self.run.plan.device == "cuda" and noted
        return self.pool.submit(run_case, self.run.plan.target, case, profile=profile, timeout=self._seconds(1))

    def _seconds(self, calls: int) -> float:
        """How long so many calls may take."""
        # A fresh process imports the kernel first; twice what that took elsewhere is not counted as the kernel's.
        return self.settings.timeout * calls + 2 * self.run.plan.import_seconds

    def _relation_outcomes(self, case: Case, name: str, count: int) -> list[Outcome]:
        """What the `count` further calls of a relation do, up to the first that has a problem."""
        future = self.pool.submit(run_relation, self.run.plan.target, case, name, timeout=self._seconds(count))
        return self._outcomes(future)

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
        judgements = self._judge(case, outcome, self.relating.names(case))
        verdict = verdict_of(judgements)
        findings = findings_of(self.run.plan, case, judgements, verdict, outcome.seconds)
        self.sink(self.run.plan, findings)
        self.reported[case] = findings
        if verdict in FAILURES:
            self.failed.append((case, judgements))
        self._remember(case, outcome, judgements, verdict)
        return verdict

    def _judge(self, case: Case, outcome: Outcome, relations: Sequence[str]) -> Judgements:
        """All checks of one case, the named relations too where the others pass."""
        if outcome.problem is not None:
            verdict, message = outcome.problem
            return (Judgement(check="run", verdict=verdict, message=message),)
        first = self.contract is None
        contract = self._contract()
        ahead = None
        if case.sampled:  # while the reference is still at work
            ahead = self.pool.submit(run_all_tokens, self.run.plan.target, case, timeout=self._seconds(len(CALLS)))
        judgements = self._ask(judgements_of, case, outcome.outputs)
        self.relating.note(judgements)
        more = [contract.judgement] if first and contract.judgement is not None else []
        if outcome.launched:
            launched = {"launched": ", ".join(outcome.launched)}
            more.append(Judgement(check="launched", verdict=Verdict.PASS, facts=launched))
        causes = []  # told first: what a kernel writes over it may compute wrongly from
        if outcome.modified:
            names = ", ".join(outcome.modified)
            message = f"It changed its input {names}."
            causes.append(Judgement(check="unmodified", verdict=Verdict.PROVEN_WRONG, message=message))
        if verdict_of(judgements) is not Verdict.PASS or outcome.modified:
            self.pool.cancel(ahead)
            return (*causes, *judgements, *more)
        if ahead is not None:
            more += self._all_tokens(case, outcome, ahead)
        else:
            more += self.relating.judge(case, relations, outcome.outputs, contract.numerics)
            more += self._trials(case, outcome)
        return (*causes, *judgements, *more)

    def _trials(self, case: Case, outcome: Outcome) -> list[Judgement]:
        """What calls by graphs and on other streams say, where the kernel runs on a device."""
        if not self.settings.device_trials or case not in self.relating.full or not triable(self.run.plan, case):
            return []
        timeout = self._seconds(4)
        try:
            tried = self.pool.wait(self.pool.submit(run_trials, self.run.plan.target, case, timeout=timeout))
        except WorkerTimeout:
            message = f"Calls by a graph and on other streams took longer than {timeout:g} s."
            return [Judgement(check="on_device", verdict=Verdict.TIMEOUT, message=message)]
        except WorkerDied as error:
            self.deaths += 1
            message = f"In calls by a graph and on other streams: {error}"
            return [Judgement(check="on_device", verdict=Verdict.CRASH, message=message)]
        if any(isinstance(outcome, str) for outcome in tried.values()):
            self.pool.renew()  # what a failed capture leaves behind is not held against the cases that follow
        ask = partial(self._ask, judgements_of, case)
        return judge_trials(tried, outcome.outputs, ask, self.run.plan.declaration)

    def _all_tokens(self, case: Case, outcome: Outcome, ahead: object) -> Judgements:
        """What can be said of the tokens that the reference does not compute; a problem of a call is a judgement."""
        outcomes = self._outcomes(ahead)
        declaration, numerics = self.run.plan.declaration, self._contract().numerics
        further = tuple(one.outputs for one in outcomes if one.problem is None)
        judged = self.judging(all_tokens, declaration, case, outcome.outputs, further, numerics)
        problems = [one.problem for one in outcomes if one.problem is not None]
        return (*judged, *(Judgement(check=CALLS[len(further)], verdict=v, message=m) for v, m in problems))

    def _ask(self, function: Asked[R], case: Case, outputs: tuple[AnyArray, ...]) -> R:
        """What the function says of a case's outputs under the kernel's contract."""
        declaration, limits = self.run.plan.declaration, self.settings.limits
        return self.judging(function, declaration, case, outputs, limits, self._contract().numerics)

    def _contract(self) -> Contract:
        """What the outputs are judged under, found by a few small calls before the first of them is judged."""
        if self.contract is None:
            self.contract = contract_of(
                self.run.plan.declaration,
                lambda case: self._outcomes(self._submit(case))[0],
                self.judging,
                require=self.settings.require,
            )
        return self.contract

    def _remember(self, case: Case, outcome: Outcome, judgements: Judgements, verdict: Verdict) -> None:
        """Keep the run with the largest z, a failing one before any that passes."""
        z = [j.numbers["max_z"] for j in judgements if "max_z" in j.numbers]
        rank = (verdict in FAILURES, max(z, default=0.0))
        if z and (self.worst is None or rank > self.worst[0]):
            self.worst = (rank, case, outcome.outputs)

    def _shrunk(self) -> Case:
        """The smallest case that fails in the same way; hangs and lost processes are not tried again."""
        shrinkable = [
            (case, wrong)
            for case, judgements in self.failed
            if verdict_of(judgements) in WRONG
            and not case.sampled
            and (wrong := {j.check for j in judgements if j.verdict in WRONG} - {"numerics"})
        ]
        if not shrinkable:
            return self.failed[0][0]
        case, wrong = shrinkable[0]
        relations = tuple(name for name in self.relating.names(case) if name in wrong)

        def fails(case: Case) -> bool:
            if lacking(self.run.plan.declaration, case) is not None:
                return False
            return verdict_of(self._judge(case, self._outcomes(self._submit(case))[0], relations)) in WRONG

        return shrink(case, fails, seconds=SHRINK_SECONDS)

    def _diagnose(self) -> None:
        """Which known bug the wrong outputs look like; one finding more."""
        verdicts = {
            case: verdict_of(judgements)
            for case, judgements in self.failed
            if any(j.check in DIAGNOSED and j.verdict in WRONG for j in judgements)
            and not case.sampled  # known bugs are looked for by computing the case again and again
        }
        found = diagnosis_of(
            tuple(verdicts), lambda case: self._outcomes(self._submit(case))[0], self.judging, self._contract().numerics
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
        line = replace(line_of(self.run.plan, case, judgement), diagnosis=diagnosis)
        self.reported[case] = [*lines, line, closing]
        self.sink(self.run.plan, self.reported[case])
