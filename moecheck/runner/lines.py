"""The findings of one kernel x case: a line for each judgement, and a closing one."""

from __future__ import annotations

from collections.abc import Sequence

from moecheck.cases import Case
from moecheck.checks.finding import Finding, Judgement, Verdict
from moecheck.runner.plan import Plan


def findings_of(
    plan: Plan, case: Case, judgements: Sequence[Judgement], verdict: Verdict, seconds: float
) -> list[Finding]:
    """All lines of a case, the closing one last. seconds: of the kernel's call."""
    lines = [line_of(plan, case, judgement) for judgement in judgements]
    reasons = [line.message for line in lines if line.verdict is verdict and line.message]
    message = "" if verdict is Verdict.PASS else (reasons[0] if reasons else "")
    return [*lines, closing_line(plan, case, lines, verdict, message, seconds=seconds)]


def line_of(plan: Plan, case: Case, judgement: Judgement) -> Finding:
    """The finding of one judgement."""
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


def closing_line(
    plan: Plan, case: Case, lines: list[Finding], verdict: Verdict, message: str, *, seconds: float = 0.0
) -> Finding:
    """The line that carries the verdict of all together."""
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
