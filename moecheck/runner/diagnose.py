"""Asks which known bug a kernel's failure looks like, on the failing case that tells most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moecheck.cases import Case
from moecheck.checks.contract import judge_contract
from moecheck.checks.finding import Verdict
from moecheck.diagnosis import best_case_for_diagnosis, diagnose
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.runner.worker import Outcome


def diagnosis_of(
    wrong: Sequence[Case], call: Callable[[Case], Outcome], oracle: Oracle, numerics: Numerics | None
) -> tuple[Case, str] | None:
    """The case that was looked at and the diagnosis in words; None where there is nothing to say.

    wrong: cases whose outputs failed. call: runs the kernel on one of them again. numerics: its contract.
    """
    if not wrong:
        return None
    case = best_case_for_diagnosis(wrong)
    outcome = call(case)
    if outcome.problem is not None:
        return None
    if judge_contract(case, oracle.inputs(case), outcome.outputs).verdict is not Verdict.PASS:
        return None
    found = diagnose(case, outcome.outputs, oracle, numerics)
    return None if found is None else (case, found.words())
