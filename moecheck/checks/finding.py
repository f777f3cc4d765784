"""The result of judging: verdicts and findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What a check says, from best to worst in the order of `SEVERITY`."""

    PASS = "pass"
    PROVEN_WRONG = "proven_wrong"
    FAIL = "fail"
    VACUOUS = "vacuous"
    INCONCLUSIVE = "inconclusive"
    CRASH = "crash"
    TIMEOUT = "timeout"
    SKIP = "skip"
    ERROR = "error"


# The verdict of many findings together is the one that stands last here.
SEVERITY = (
    Verdict.SKIP,
    Verdict.VACUOUS,
    Verdict.INCONCLUSIVE,
    Verdict.PASS,
    Verdict.FAIL,
    Verdict.PROVEN_WRONG,
    Verdict.TIMEOUT,
    Verdict.CRASH,
    Verdict.ERROR,
)
LIMIT = "limit_"  # before the name of a metric in `numbers`: the limit on its absolute value
FAILURES = frozenset({Verdict.FAIL, Verdict.PROVEN_WRONG, Verdict.TIMEOUT, Verdict.CRASH, Verdict.ERROR})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One judgement on one run.

    kernel: the kernel's name. case: the case's id. check: which judgement (`values`, `routing`, `written`,
    `unmodified`, ...; the last line of a run is `case`, the verdict of all together). message: seen, expected,
    where, in one or two sentences. numbers: metric name -> value (max_diff, max_rel_diff, mismatch_ratio, max_z,
    rms_z, rms_ref, ...), and `limit_NAME` -> what honest rounding explains of |NAME|. where: coordinates of the worst
    element by axis name (`{"token": 3, "column": 17}`). seconds: time of the kernel call. diagnosis: which known bug
    the failure looks like, in words. facts: what the check found, in words, by what it is about (`contract`,
    `runner_up`, the name of a relation).
    """

    kernel: str
    case: str
    check: str
    verdict: Verdict
    message: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    where: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    diagnosis: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, float]:
        """The metrics that are judged -> their limits."""
        names = [name for name in self.numbers if LIMIT + name in self.numbers]
        return {name: self.numbers[LIMIT + name] for name in names}

    @property
    def metrics(self) -> dict[str, float]:
        """`numbers` without the limits."""
        return {name: value for name, value in self.numbers.items() if not name.startswith(LIMIT)}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Finding:
        return cls(**{**data, "verdict": Verdict(data["verdict"])})


def worst(verdicts: list[Verdict]) -> Verdict:
    """The verdict of several judgements together; SKIP for none."""
    return max(verdicts, key=SEVERITY.index, default=Verdict.SKIP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one check says of one output: a Finding before it is known whose run it was."""

    check: str
    verdict: Verdict
    message: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    where: dict[str, int] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def verdict_of(judgements: Iterable[Judgement]) -> Verdict:
    """The verdict of one run: its worst failure, else whatever is no pass; INCONCLUSIVE where nothing was judged."""
    verdicts = [judgement.verdict for judgement in judgements]
    failing = [verdict for verdict in verdicts if verdict in FAILURES]
    if failing:
        return worst(failing)
    # A vacuous or undecided run is no pass, whatever its other checks say.
    for verdict in (Verdict.SKIP, Verdict.VACUOUS, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS if verdicts else Verdict.INCONCLUSIVE
