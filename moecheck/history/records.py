"""The records that a history keeps: nights, their runs, what each run says of each subject."""

from __future__ import annotations

from dataclasses import dataclass, field

from moecheck.checks.finding import FAILURES, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failing kernel x case, or the like of another part. check: which judgement decided. case: id, may be empty."""

    check: str
    case: str = ""
    verdict: Verdict = Verdict.FAIL
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that one run says of one subject.

    subject: a kernel's name, a mutant's id, `model · candidate` end to end, `kernel · op · model · weights · tokens` of
    a timing. judged, passed: numbers of cases. failures: of the subject. covered: a failure is no news unless the
    subject passed before, because the run has a bar for all subjects together (mutants). metrics: name -> value.
    passing: ids of the cases that passed, which are not kept.
    """

    subject: str
    verdict: Verdict
    op: str = ""
    backend: str = ""
    device: str = ""
    judged: int = 0
    passed: int = 0
    message: str = ""
    diagnosis: str = ""
    worst_case: str = ""
    reproduce: str = ""
    covered: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    passing: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        return self.verdict in FAILURES

    @property
    def was_judged(self) -> bool:
        return self.verdict is not Verdict.SKIP

    @property
    def check(self) -> str:
        """The checks that fail, the most frequent first."""
        counts: dict[str, int] = {}
        for failure in self.failures:
            counts[failure.check] = counts.get(failure.check, 0) + 1
        return ", ".join(sorted(counts, key=lambda check: -counts[check]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One part of a night, or a run by itself. run: its identity, the name of its report folder.

    part: kernels, mutants, e2e or bench. label: of the part in the configuration. started: ISO 8601 in UTC.
    machine: processor and accelerators; only runs of one machine are compared by their numbers.
    """

    run: str
    part: str
    label: str
    started: str
    seconds: float
    command: str
    machine: str
    folder: str
    git: str | None = None
    profile: str | None = None
    seed: int | None = None
    results: tuple[Result, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a night says of one subject. status: `regression`, `known`, `drift`, ... (moecheck.nightly.compare)."""

    label: str
    subject: str
    device: str
    status: str
    check: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One `moecheck nightly`. night: its identity, the name of its folder. name: nights of one name are compared."""

    night: str
    name: str
    started: str
    seconds: float
    exit_code: int
    folder: str
    machine: str
    git: str | None = None
    seed: int | None = None
    runs: tuple[Run, ...] = ()
    statuses: tuple[Status, ...] = ()
