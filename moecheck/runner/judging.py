"""What is asked of the processes that judge: functions that take their oracle first and return what can be pickled."""

from __future__ import annotations

from moecheck.bounds import z_limit
from moecheck.cases import Case
from moecheck.checks.contract import judge_contract
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.judge import Judged, Limits, judge
from moecheck.diagnosis import diagnose
from moecheck.formats import AnyArray
from moecheck.kernel import Declaration
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.relations.all_tokens import judge_all_token_calls
from moecheck.relations.relation import Subject, relations
from moecheck.relations.verdict import Setting, judge_relation
from moecheck.report.picture import ErrorPicture, picture_of

Outputs = tuple[AnyArray, ...]


def judgements_of(
    oracle: Oracle, declaration: Declaration, case: Case, outputs: Outputs, limits: Limits, numerics: Numerics | None
) -> tuple[Judgement, ...]:
    """All checks of one case under the contract `numerics`, which a kernel that declares none was found to have."""
    return _judged(oracle, declaration, case, outputs, limits, numerics).judgements


def all_tokens(
    oracle: Oracle,
    declaration: Declaration,
    case: Case,
    outputs: Outputs,
    further: tuple[Outputs, ...],
    numerics: Numerics | None,
) -> tuple[Judgement, ...]:
    """What the further calls on a sampled case say of all its tokens."""
    arrays = tuple(out[0] for out in further)
    return judge_all_token_calls(oracle, declaration, case, outputs[0], arrays, numerics)


def picture(
    oracle: Oracle, declaration: Declaration, case: Case, outputs: Outputs, limits: Limits, numerics: Numerics | None
) -> ErrorPicture | None:
    """The picture of one run's error against what rounding allows; None where there are no values to draw."""
    judged = _judged(oracle, declaration, case, outputs, limits, numerics)
    if judged.out is None or judged.values is None or not judged.out.size:
        return None
    sigma = judged.values.sigma
    allowed = z_limit(judged.out.size) * sigma
    return picture_of(judged.out, judged.values.true, allowed, kernel=declaration.name, case=case.id, sigma=sigma)


def calls_of_relation(oracle: Oracle, name: str, case: Case) -> int:
    """How many further calls a relation makes on a case."""
    return len(relations()[name].trial(case, oracle.inputs(case)).calls)


def relation_judgement(
    oracle: Oracle,
    name: str,
    declaration: Declaration,
    case: Case,
    outputs: Outputs,
    further: tuple[Outputs, ...],
    numerics: Numerics | None,
) -> Judgement:
    """Whether a relation holds. outputs: of the case itself. further: of the relation's calls, in order."""
    law = relations()[name]
    setting = Setting(subject=Subject(declaration=declaration, case=case), oracle=oracle, numerics=numerics)
    return judge_relation(law, law.trial(case, oracle.inputs(case)), outputs, further, setting)


def diagnosis(oracle: Oracle, case: Case, outputs: Outputs, numerics: Numerics | None) -> str | None:
    """Which known bug a wrong output looks like, in words; None where there is nothing to say."""
    if judge_contract(case, oracle.inputs(case), outputs).verdict is not Verdict.PASS:
        return None
    found = diagnose(case, outputs, oracle, numerics)
    return None if found is None else found.words()


def _judged(
    oracle: Oracle, declaration: Declaration, case: Case, outputs: Outputs, limits: Limits, numerics: Numerics | None
) -> Judged:
    return judge(
        case, outputs, oracle, limits, numerics, tie=declaration.tie, declared=declaration.numerics is not None
    )
