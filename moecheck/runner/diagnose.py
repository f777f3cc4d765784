"""Asks which known bug a kernel's failure looks like, on the failing case that tells most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moecheck.cases import Case
from moecheck.diagnosis import best_case_for_diagnosis
from moecheck.numerics import Numerics
from moecheck.runner.judges import Judging
from moecheck.runner.judging import diagnosis
from moecheck.runner.worker import Outcome


def diagnosis_of(
    wrong: Sequence[Case], call: Callable[[Case], Outcome], judging: Judging, numerics: Numerics | None
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
    words = judging(diagnosis, case, outcome.outputs, numerics)
    return None if words is None else (case, words)
