"""Runs kernels on cases for their times: each in a process of its own, each case checked before it is timed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from moecheck.bench.cases import weights_name
from moecheck.bench.entry import Entry
from moecheck.bench.in_worker import Timed, time_case
from moecheck.bench.limits import Limits, measure_limits, operands_of
from moecheck.bench.work import work_of
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict, verdict_of
from moecheck.checks.judge import Limits as Allowed
from moecheck.kernel import Declaration
from moecheck.numerics import Numerics
from moecheck.registry import Found
from moecheck.runner.contract import contract_of
from moecheck.runner.judges import JudgePool, Judging
from moecheck.runner.judging import all_tokens, judgements_of
from moecheck.runner.plan import lacking, other_semantics
from moecheck.runner.pool import KernelPool, WorkerDied, WorkerTimeout
from moecheck.runner.worker import Outcome, run_all_tokens, run_case
from moecheck.tuning import Configuration
from moecheck.tuning.in_worker import call_pinned

MEASURING = 120.0  # seconds at most for a device's limits
MOST_LOST = 2  # after so many lost processes or timeouts a kernel's other cases are not tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A case by the name of its model."""

    model: str
    case: Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """seconds: for timing one kernel on one case. timeout: for a call with its compilation. memory: of one process, in
    bytes. threads: of the reference.
    """

    seconds: float = 0.3
    timeout: float = 120.0
    memory: int = 16 << 30
    threads: int = 1


Advance = Callable[[Entry], None]


def run_bench(
    found: Sequence[Found], wanted: Sequence[Wanted], settings: Settings, advance: Advance
) -> tuple[list[Entry], dict[str, Limits]]:
    """An entry for every kernel and case of its op, and the limits of the devices. advance: told of each entry."""
    limits = {device: measured_limits(device, settings) for device in sorted({kernel.device for kernel in found})}
    entries: list[Entry] = []
    with (
        tempfile.TemporaryDirectory(prefix="moecheck-inputs-") as store,
        JudgePool(1, store=store, threads=settings.threads) as judging,
    ):
        for kernel in found:
            with KernelPool(memory=settings.memory, threads=settings.threads, store=store) as pool:
                run = KernelBench(kernel=kernel, settings=settings, judging=judging, pool=pool, limits=limits)
                for one in wanted:
                    if one.case.op == kernel.declaration.op:
                        entries.append(run.entry(one))
                        advance(entries[-1])
    order = {one.case.id: number for number, one in enumerate(wanted)}
    return sorted(entries, key=lambda entry: order[entry.case]), limits


def measured_limits(device: str, settings: Settings) -> Limits:
    """The device's limits, measured in a process of their own; an interpreter's are those of the CPU."""
    where = "cuda" if device == "cuda" else "cpu"
    with KernelPool(memory=settings.memory, threads=settings.threads) as pool:
        measured: Limits = pool.wait(pool.submit(measure_limits, where, timeout=MEASURING))
    return measured


@dataclass(slots=True, kw_only=True)
class KernelBench:
    """One kernel's process, and what is known of the kernel. lost: how often the process was lost.

    pin: the configuration that a tunable kernel uses; None for the one that it would choose. all_tokens: whether the
    tokens that the reference does not compute are checked, too, by further calls.
    """

    kernel: Found
    settings: Settings
    judging: Judging
    pool: KernelPool
    limits: dict[str, Limits]
    pin: Configuration | None = None
    all_tokens: bool = False
    lost: int = 0
    found: dict[bool, Numerics | None] = field(default_factory=dict)

    def entry(self, wanted: Wanted) -> Entry:
        case, declaration = wanted.case, self.kernel.declaration

        def told(status: str, reason: str) -> Entry:
            return _entry(wanted, self.kernel, status=status, reason=reason)

        reason = lacking(declaration, case) or other_semantics(declaration, case)
        if reason is not None:
            return told("skipped", reason)
        if self.lost >= MOST_LOST:
            return told("failed", f"not run: it lost its process or timed out {self.lost} times")
        outcome = self._called(case)
        if outcome.problem is not None:
            verdict, message = outcome.problem
            return told("skipped" if verdict is Verdict.SKIP else "failed", message)
        verdict, message = self._verdict(case, outcome)
        if verdict is not Verdict.PASS:
            return told("wrong" if verdict in FAILURES else "skipped", message)
        if self.all_tokens and case.sampled and (reason := self._wrong_elsewhere(case, outcome)):
            return told("wrong", reason)
        timed = self._timed(case)
        if timed.timing is None:
            return told("failed", timed.problem)
        work = work_of(case)
        return _entry(
            wanted,
            self.kernel,
            status="timed",
            timing=timed.timing,
            work=work,
            roofline=self.limits[self.kernel.device].seconds(work, operands_of(case)),
        )

    def _submit(self, function: Callable[..., object], *arguments: object, timeout: float) -> Any:
        """A call about the kernel in its process, its configuration pinned."""
        given = (self.kernel.target, *arguments)
        if self.pin is None:
            return self.pool.submit(function, *given, timeout=timeout)
        return self.pool.submit(call_pinned, dict(self.pin), function, *given, timeout=timeout)

    def _called(self, case: Case) -> Outcome:
        timeout = self.settings.timeout + 2 * self.kernel.import_seconds
        try:
            outcome: Outcome = self.pool.wait(self._submit(run_case, case, timeout=timeout))
        except WorkerTimeout:
            self.lost += 1
            return Outcome(problem=(Verdict.TIMEOUT, f"no result after {self.settings.timeout:g} s"))
        except WorkerDied as error:
            self.lost += 1
            return Outcome(problem=(Verdict.CRASH, str(error)))
        return outcome

    def _timed(self, case: Case) -> Timed:
        timeout = self.settings.timeout + 10 * self.settings.seconds + 2 * self.kernel.import_seconds
        seconds = self.settings.seconds
        try:
            timed: Timed = self.pool.wait(self._submit(time_case, case, seconds, timeout=timeout))
        except WorkerTimeout:
            self.lost += 1
            return Timed(problem=f"timing took longer than {timeout:g} s")
        except WorkerDied as error:
            self.lost += 1
            return Timed(problem=str(error))
        return timed

    def _verdict(self, case: Case, outcome: Outcome) -> tuple[Verdict, str]:
        """What the checks say of an output, and why."""
        if outcome.modified:
            return Verdict.PROVEN_WRONG, f"It changed its input {', '.join(outcome.modified)}."
        declaration = self.kernel.declaration
        numerics = self._contract(declaration, case)
        judgements = self.judging(judgements_of, declaration, case, outcome.outputs, Allowed(), numerics)
        verdict = verdict_of(judgements)
        return verdict, next((j.message for j in judgements if j.verdict is verdict and j.message), "")

    def _wrong_elsewhere(self, case: Case, outcome: Outcome) -> str:
        """What is wrong of tokens beyond the sample, or nothing."""
        timeout = self.settings.timeout + 2 * self.kernel.import_seconds
        try:
            further: list[Outcome] = self.pool.wait(self._submit(run_all_tokens, case, timeout=timeout))
        except (WorkerTimeout, WorkerDied) as error:
            self.lost += 1
            return f"the calls on all tokens did not end: {error}"
        problem = next((one.problem for one in further if one.problem is not None), None)
        if problem is not None:
            return problem[1]
        outputs = tuple(one.outputs for one in further)
        declaration = self.kernel.declaration
        numerics = self._contract(declaration, case)
        judgements = self.judging(all_tokens, declaration, case, outcome.outputs, outputs, numerics)
        return next((one.message for one in judgements if one.verdict in FAILURES), "")

    def _contract(self, declaration: Declaration, case: Case) -> Numerics | None:
        """What the output is compared under: that of a kernel that requantises; None, which all others share.

        A kernel of quantised weights that declares nothing is asked by a few small calls.
        """
        quantised = case.spec.experts.quantization is not None
        if declaration.numerics is not None:
            return declaration.numerics if declaration.numerics.requantises else None
        if not quantised:
            return None
        if quantised not in self.found:
            self.found[quantised] = contract_of(declaration, self._called, self.judging).numerics
        return self.found[quantised]


def _entry(wanted: Wanted, kernel: Found, *, status: str, reason: str = "", **more: object) -> Entry:
    case = wanted.case
    return Entry(
        kernel=kernel.declaration.name,
        op=case.op,
        model=wanted.model,
        weights=weights_name(case),
        tokens=case.num_tokens,
        case=case.id,
        device=kernel.device,
        status=status,  # type: ignore[arg-type]  # one of the four
        reason=" ".join(reason.split()),
        **more,  # type: ignore[arg-type]  # timing, work and roofline
    )
