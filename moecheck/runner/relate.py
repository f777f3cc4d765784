"""Tries metamorphic relations on a kernel in its process, and judges them here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Judgement, Verdict
from moecheck.curated_ranks import RESCHEDULED
from moecheck.formats import AnyArray
from moecheck.numerics import Numerics
from moecheck.relations.relation import Relation, Subject, relations
from moecheck.runner.judges import Judging
from moecheck.runner.judging import calls_of_relation, relation_judgement
from moecheck.runner.plan import Plan
from moecheck.runner.worker import Outcome

# On which cases all relations are tried: on a few plain ones, on every named one, or on every one.
Reach = Literal["few", "named", "every"]
FEW = 2
COMPILED = ("jax", "pallas_tpu", "pallas_gpu")  # backends that compile for each new shape, for seconds
TOKENS = range(2, 129)  # of a case that is worth its many calls
HELD = "held"  # the fact about a relation that was tried and not broken
CAPABILITIES = ("deterministic", "batch_invariant", "tie")
# (case, name of a relation, number of its calls) -> what they did
Calling = Callable[[Case, str, int], list[Outcome]]


@dataclass(slots=True, kw_only=True)
class Relating:
    """The relations of one kernel's run.

    full: the cases on which all of them are tried; on other named ones those that verify a declared capability.
    verified: capabilities that some call verified. last: a case that was judged.
    """

    plan: Plan
    judging: Judging
    call: Calling
    full: frozenset[Case]
    verified: set[str] = field(default_factory=set)
    last: Case | None = None

    def names(self, case: Case) -> tuple[str, ...]:
        """The relations that are to be tried on the case, whether their premises hold or not."""
        if case in self.full:
            return tuple(name for name, law in relations().items() if _affordable(self.plan, law))
        declaration = self.plan.declaration
        declared = {flag for flag in CAPABILITIES if case.name and getattr(declaration, flag)}
        chosen = {name for name, law in relations().items() if law.capability in declared}
        if case.name in RESCHEDULED and not self.plan.part:
            chosen.add("copy_schedules")
        return tuple(name for name in relations() if name in chosen)

    def judge(
        self, case: Case, names: Sequence[str], outputs: tuple[AnyArray, ...], numerics: Numerics | None
    ) -> list[Judgement]:
        """What the named relations say of a case whose own outputs passed.

        Those that fail and those that verify a capability have a judgement each, the others one together, whose
        facts say of each name whether it held.
        """
        self.last = case
        judgements, held, untried = [], 0, 0
        facts: dict[str, str] = {}
        for name in names:
            judgement = self._one(relations()[name], case, outputs, numerics)
            if isinstance(judgement, str):
                untried += 1
                facts[name] = f"not tried: {judgement}"
                continue
            facts[name] = HELD if judgement.verdict is Verdict.PASS else "broken"
            if judgement.verdict is Verdict.PASS and not judgement.numbers:
                held += 1
            else:
                judgements.append(judgement)
        if held or untried:
            numbers = {"relations_held": float(held), "relations_not_tried": float(untried)}
            judgements.append(Judgement(check="relations", verdict=Verdict.PASS, numbers=numbers, facts=facts))
        return judgements

    def _one(
        self, law: Relation, case: Case, outputs: tuple[AnyArray, ...], numerics: Numerics | None
    ) -> Judgement | str:
        """Its judgement, or why it could not be tried: its premises fail, or the kernel declines its calls."""
        declaration = self.plan.declaration
        reason = law.missing(Subject(declaration=declaration, case=case))
        if reason is not None:
            return reason
        outcomes = self.call(case, law.name, self.judging(calls_of_relation, law.name, case))
        problem = outcomes[-1].problem
        if problem is not None:
            return _refused(law, problem)
        further = tuple(outcome.outputs for outcome in outcomes)
        judgement = self.judging(relation_judgement, law.name, declaration, case, outputs, further, numerics)
        if law.capability is not None:
            self.verified.add(law.capability)
        return judgement

    def note(self, judgements: Sequence[Judgement]) -> None:
        """Take down that the declared tie rule was put to the test."""
        if any(judgement.check == "tie" for judgement in judgements):
            self.verified.add("tie")

    def unverified(self) -> list[str]:
        """Declared capabilities that no call of the run verified."""
        declaration = self.plan.declaration
        return [flag for flag in CAPABILITIES if getattr(declaration, flag) and flag not in self.verified]


def cases_to_relate(plan: Plan, cases: Sequence[Case], reach: Reach) -> frozenset[Case]:
    """The cases on which all relations are tried.

    `few`: two plain ones of different dtypes, and one more where it makes a relation possible that these do not; one
    for a kernel that an interpreter runs or that is compiled for each new shape.
    """
    if reach == "every":
        return frozenset(cases)
    named = [case for case in cases if case.name]
    if reach == "named":
        return frozenset(named)
    plain = [case for case in named if case.num_tokens in TOKENS and _is_plain(case)]
    if _is_slow(plan):
        return frozenset() if plan.part else frozenset(plain[:1])
    chosen: list[Case] = []
    possible: set[str] = set()
    for case in plain:
        names = {
            name
            for name, law in relations().items()
            if law.missing(Subject(declaration=plan.declaration, case=case)) is None
        }
        distinct = len(chosen) < FEW and case.dtype not in {other.dtype for other in chosen}
        if distinct or (len(chosen) == FEW and names - possible):
            chosen.append(case)
            possible |= names
    return frozenset(chosen)


def _is_plain(case: Case) -> bool:
    return (case.stratum, case.load, case.layout) == ("random", "random", "contiguous")


def _is_slow(plan: Plan) -> bool:
    return plan.interpreted or plan.declaration.backend in COMPILED


def _affordable(plan: Plan, law: Relation) -> bool:
    return law.keeps_shapes or not _is_slow(plan)


def _refused(law: Relation, problem: tuple[Verdict, str]) -> Judgement | str:
    verdict, message = problem
    if verdict not in FAILURES or (law.optional and verdict is Verdict.CRASH):
        return f"the kernel declines a call: {message}"
    return Judgement(
        check=law.name, verdict=verdict, message=f"{law.says[0].upper()}{law.says[1:]}; here a call ends: {message}"
    )
