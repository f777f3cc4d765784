"""Under which contract a kernel's outputs are judged: the declared one, or the one that a few calls identify."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moecheck.cases import Case
from moecheck.checks.contract import judge_contract
from moecheck.checks.finding import FAILURES, Judgement, Verdict
from moecheck.formats import AnyArray
from moecheck.identify import identification_cases, identify, is_near, judge_numerics, judge_unseen, observation
from moecheck.kernel import Declaration
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.runner.judges import Judging
from moecheck.runner.worker import Outcome

Seen = tuple[Case, tuple[AnyArray, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """numerics: what to judge under, None where nothing is declared and none was found. judgement: of the contract."""

    numerics: Numerics | None
    judgement: Judgement | None = None


def contract_of(
    declaration: Declaration,
    call: Callable[[Case], Outcome],
    judging: Judging,
    *,
    require: Mapping[str, str] | None = None,
) -> Contract:
    """The kernel's contract. call: runs the kernel on one case; its failures are left to the kernel's own cases.

    require: store -> the narrowest format that it may use there.
    """
    seen: list[Seen] = []
    for case in identification_cases(declaration):
        outcome = call(case)
        if outcome.problem is None:
            seen.append((case, outcome.outputs))
        elif outcome.problem[0] in FAILURES:
            break
    return judging(contract_from, declaration, seen, require or {})


def contract_from(
    oracle: Oracle, declaration: Declaration, seen: Sequence[Seen], require: Mapping[str, str]
) -> Contract:
    """The contract that explains what a kernel returned on some cases. seen: cases and outputs."""
    observations: list[tuple[Case, AnyArray]] = []
    for case, outputs in seen:
        if judge_contract(case, oracle.inputs(case), outputs).verdict is Verdict.PASS:
            array = observation(case, outputs, oracle)
            observations += [] if array is None else [(case, array)]
    if not observations:
        return Contract(numerics=declaration.numerics, judgement=judge_unseen(declaration, require))
    # The search among the contracts of quantised weights takes many times what the declared one takes.
    start = declaration.numerics if declaration.quantizations else None
    identified = identify(observations, oracle, declared=start)
    found = identified.numerics if identified.known or is_near(identified) else None
    return Contract(
        numerics=declaration.numerics or found,
        judgement=judge_numerics(declaration.numerics, identified, require=require),
    )
