"""Judges an output as the runner does, and says which checks and which statistics found it wrong."""

from __future__ import annotations

from dataclasses import dataclass

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, LIMIT, Judgement, Verdict, verdict_of
from moecheck.checks.judge import Limits, judge
from moecheck.formats import AnyArray
from moecheck.kernel import TieRule
from moecheck.oracle import Oracle

from .variants import Variant

LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """verdict: of all checks together. checks: names of those that failed; a statistic counts as a check of its own.

    message: the first failure's words.
    """

    verdict: Verdict
    checks: frozenset[str]
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.verdict in FAILURES


def judged(case: Case, outputs: tuple[AnyArray, ...], oracle: Oracle, variant: Variant) -> Judged:
    """The verdict on a kernel's outputs under what the harness knows of its contract."""
    tie: TieRule | None = "lowest_index" if case.op == "topk_routing" and variant.declared else None
    told = variant.judged_under
    found = judge(case, outputs, oracle, LIMITS, told, tie=tie, declared=variant.declared).judgements
    failing = [one for one in found if one.verdict in FAILURES]
    names = {name for one in failing for name in names_of(one, case)}
    return Judged(verdict=verdict_of(found), checks=frozenset(names), message=failing[0].message if failing else "")


def names_of(judgement: Judgement, case: Case) -> set[str]:
    """`values`, `exact probe`, `statistics: slope_error`, ..."""
    if judgement.check == "values" and case.stratum in ("integer", "one_hot"):
        return {"exact probe" if case.stratum == "integer" else "activation probe"}
    if judgement.check != "statistics":
        return {judgement.check}
    numbers = judgement.numbers
    beyond = {
        name
        for name, value in numbers.items()
        if not name.startswith(LIMIT) and LIMIT + name in numbers and not abs(value) <= numbers[LIMIT + name]
    }
    return {f"statistics: {name}" for name in beyond} or {"statistics"}
