"""The score as data: what happened to each mutant, which correct kernels were accused, what is just seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

KILLED_SHARE = 0.95  # of the seeds in which a mutant must be caught to count as killed
CLASSES = ("routing", "shared", "activation", "GEMM", "quantisation", "plumbing")
KERNELS, CHECKER = "real kernels", "the checker"
BARS = {"quick": 0.95, "default": 0.95, "nightly": 0.98}


@dataclass(frozen=True, slots=True, kw_only=True)
class MutantScore:
    """One mutant. seeds: in how many it was tried. caught: by op, in how many of them it was caught.

    never: ops of which no case gave it a meaning. checks: by name, those that saw it in the first seed, on any case.
    expected: the checks of which one should see it. seen_on: id of a case on which it was caught. equivalent: why no
    check can see it. differed: whether an equivalent one did change some output, which is then a wrong claim.
    why: of a survivor, what was seen of it. undeclared: by op, in how many of undeclared_seeds seeds it was caught in a
    kernel that says nothing of where it rounds, and is not found out either.
    """

    id: str
    kind: str
    words: str
    sources: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    seeds: int = 0
    caught: dict[str, int] = field(default_factory=dict)
    never: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    seen_on: str = ""
    equivalent: str = ""
    differed: bool = False
    why: str = ""
    undeclared: dict[str, int] = field(default_factory=dict)
    undeclared_seeds: int = 0

    @property
    def seen_undeclared(self) -> bool | None:
        """Whether it is killed in kernels that say nothing; None where it was not tried in any."""
        if not self.undeclared or self.equivalent:
            return None
        return all(caught >= KILLED_SHARE * self.undeclared_seeds for caught in self.undeclared.values())

    @property
    def p_kill(self) -> float:
        """Share of the seeds in which it was caught, in the op where that is least."""
        return min((self.caught.get(op, 0) / self.seeds for op in self.ops), default=0.0) if self.seeds else 0.0

    @property
    def killed(self) -> bool:
        return not self.equivalent and self.p_kill >= KILLED_SHARE

    @property
    def survived(self) -> bool:
        return not self.equivalent and not self.killed

    @property
    def as_expected(self) -> bool:
        """Whether one of the checks that should see it did; true where not all checks are known."""
        known = self.checks and self.expected
        return not known or any(wanted in check for wanted in self.expected for check in self.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """Correct kernels of one class of numerics that were judged. alarms: what was said of those that failed."""

    name: str
    trials: int
    variants: int
    alarms: tuple[str, ...] = ()
    undecided: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is just seen in one class of numerics, in KILLED_SHARE of the seeds; None: nothing that was tried.

    factor: the smallest factor - 1 on all routing weights. sigmas: the smallest error of a single element, in standard
    deviations. elements: how many of 65,536 elements must be off by four of them.
    """

    name: str
    factor: float | None
    sigmas: float | None
    elements: int | None
    curve: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination of semantics. cases: of the profile, that exercise it. died: mutants that were caught there."""

    routing: str
    activation: str
    quantisation: str
    plumbing: str
    cases: int
    died: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A whole run of `moecheck mutants`. baselines: kernels as they are that were accused. skipped: why."""

    profile: str
    seeds: int
    command: str
    mutants: tuple[MutantScore, ...]
    alarms: tuple[Alarms, ...] = ()
    limits: tuple[Limits, ...] = ()
    coverage: tuple[Cell, ...] = ()
    baselines: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    cpu_by_part: dict[str, float] = field(default_factory=dict)
    started: str = ""
    git: str | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The classes that have mutants, in order."""
        present = {one.kind for one in self.mutants}
        return tuple(kind for kind in (*CLASSES, KERNELS, CHECKER) if kind in present)

    def of(self, kind: str) -> tuple[MutantScore, ...]:
        return tuple(one for one in self.mutants if one.kind == kind)

    @property
    def overall(self) -> float:
        """Killed of all that are not equivalent."""
        return share_killed(self.mutants)

    @property
    def macro(self) -> float:
        """Mean over the classes."""
        shares = [share_killed(self.of(kind)) for kind in self.kinds]
        return sum(shares) / len(shares) if shares else 0.0

    def undeclared(self, kind: str | None = None) -> tuple[int, int]:
        """Mutants killed in kernels that say nothing, and those tried in them, of a class or of all."""
        found = [one.seen_undeclared for one in (self.mutants if kind is None else self.of(kind))]
        return sum(seen is True for seen in found), sum(seen is not None for seen in found)

    @property
    def unseen_undeclared(self) -> tuple[str, ...]:
        """Ids of mutants that are killed, but not in kernels that say nothing."""
        return tuple(one.id for one in self.mutants if one.killed and one.seen_undeclared is False)

    @property
    def survivors(self) -> tuple[MutantScore, ...]:
        return tuple(one for one in self.mutants if one.survived)

    @property
    def false_claims(self) -> tuple[MutantScore, ...]:
        """Mutants that are called equivalent and are not."""
        return tuple(one for one in self.mutants if one.equivalent and one.differed)

    @property
    def false_alarms(self) -> tuple[str, ...]:
        return (*(text for alarms in self.alarms for text in alarms.alarms), *self.baselines.values())

    @property
    def unique_kills(self) -> Counter[str]:
        """Check -> mutants that no other check saw. Statistics count one by one."""
        return Counter(one.checks[0] for one in self.mutants if one.killed and len(one.checks) == 1)

    @property
    def kills(self) -> Counter[str]:
        """Check -> mutants that it saw."""
        return Counter(check for one in self.mutants if one.killed for check in one.checks)

    @property
    def passed(self) -> bool:
        bar = BARS[self.profile]
        return self.overall >= bar and self.macro >= bar and not self.false_alarms and not self.false_claims

    def to_json(self) -> dict[str, Any]:
        """Plain data, with what follows from it."""
        data = asdict(self)
        for one, record in zip(self.mutants, data["mutants"], strict=True):
            record |= {"p_kill": one.p_kill, "killed": one.killed, "as_expected": one.as_expected}
        classes = {
            kind: {
                "mutants": len(self.of(kind)),
                "killed": sum(one.killed for one in self.of(kind)),
                "equivalent": sum(bool(one.equivalent) for one in self.of(kind)),
                "score": share_killed(self.of(kind)),
                "undeclared": dict(zip(("killed", "tried"), self.undeclared(kind), strict=True)),
            }
            for kind in self.kinds
        }
        more = {
            "schema": 1,
            "bar": BARS[self.profile],
            "score": self.overall,
            "macro_average": self.macro,
            "passed": self.passed,
            "classes": classes,
            "survivors": [one.id for one in self.survivors],
            "unseen_undeclared": list(self.unseen_undeclared),
            "kills_by_check": dict(self.kills.most_common()),
            "unique_kills": dict(self.unique_kills.most_common()),
        }
        return more | data


def share_killed(mutants: Iterable[MutantScore]) -> float:
    """Killed of those that are not equivalent; 1 where all are."""
    tried = [one for one in mutants if not one.equivalent]
    return sum(one.killed for one in tried) / len(tried) if tried else 1.0
