"""Asks which known bug a kernel's failure looks like, on the failing case that tells most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.checks.judge import VALUE_OPS
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.runner.worker import Outcome

OPS = VALUE_OPS | {"topk_routing"}


def diagnosis_of(
    failed: Sequence[tuple[Case, Verdict]],
    call: Callable[[Case], Outcome],
    oracle: Oracle,
    numerics: Numerics | None,
) -> tuple[Case, Verdict, str] | None:
    """The case that was looked at, its verdict, and the diagnosis in words; None where there is nothing to look at.

    failed: cases with wrong outputs. call: runs the kernel on one of them again.
    """
    return None
