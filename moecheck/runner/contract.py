"""Under which contract a kernel's outputs are judged: the declared one, or the one that a few calls identify."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moecheck.cases import Case
from moecheck.checks.contract import judge_contract
from moecheck.checks.finding import FAILURES, Judgement, Verdict
from moecheck.formats import AnyArray
from moecheck.identify import (
    Identified,
    identification_cases,
    identify,
    is_near,
    judge_numerics,
    judge_unseen,
    observation,
)
from moecheck.kernel import Declaration
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.runner.worker import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """numerics: what to judge under, None where nothing is declared and none was found. judgement: of the contract."""

    numerics: Numerics | None
    identified: Identified | None = None
    judgement: Judgement | None = None


def contract_of(
    declaration: Declaration,
    call: Callable[[Case], Outcome],
    oracle: Oracle,
    *,
    require: Mapping[str, str] | None = None,
) -> Contract:
    """The kernel's contract. call: runs the kernel on one case; its failures are left to the kernel's own cases.

    require: store -> the narrowest format that it may use there.
    """
    observations: list[tuple[Case, AnyArray]] = []
    for case in identification_cases(declaration):
        outcome = call(case)
        if outcome.problem is not None and outcome.problem[0] in FAILURES:
            break
        if outcome.problem is None and _is_sound(case, outcome, oracle):
            seen = observation(case, outcome.outputs, oracle)
            observations += [] if seen is None else [(case, seen)]
    if not observations:
        return Contract(numerics=declaration.numerics, judgement=judge_unseen(declaration, require or {}))
    # The search among the contracts of quantised weights takes many times what the declared one takes.
    start = declaration.numerics if declaration.quantizations else None
    identified = identify(observations, oracle, declared=start)
    found = identified.numerics if identified.known or is_near(identified) else None
    return Contract(
        numerics=declaration.numerics or found,
        identified=identified,
        judgement=judge_numerics(declaration.numerics, identified, require=require),
    )


def _is_sound(case: Case, outcome: Outcome, oracle: Oracle) -> bool:
    return judge_contract(case, oracle.inputs(case), outcome.outputs).verdict is Verdict.PASS
