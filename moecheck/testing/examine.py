"""The judgement of one call: what its outputs are worth, and all that can be said about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from moecheck.checks.finding import FAILURES, Judgement, Verdict, worst
from moecheck.checks.judge import Judged, Limits, judge
from moecheck.formats import AnyArray
from moecheck.numerics import Numerics
from moecheck.report.picture import ErrorPicture

from .given import Given


@dataclass(frozen=True, kw_only=True)
class Examined:
    """One judged call. contract: what is known of its rounding points, in words. diagnosis: what a failure looks like.

    limits: the tolerance that it was judged with.
    """

    given: Given
    judged: Judged
    limits: Limits
    contract: str = ""
    diagnosis: str = ""

    @cached_property
    def verdict(self) -> Verdict:
        """Of all judgements together: a failure first, then whatever is no pass."""
        verdicts = [judgement.verdict for judgement in self.judged.judgements]
        failing = [verdict for verdict in verdicts if verdict in FAILURES]
        if failing:
            return worst(failing)
        undecided = (Verdict.SKIP, Verdict.VACUOUS, Verdict.INCONCLUSIVE)
        return next((verdict for verdict in undecided if verdict in verdicts), Verdict.PASS)

    @cached_property
    def decisive(self) -> Judgement:
        """The judgement that explains the verdict."""
        own = [judgement for judgement in self.judged.judgements if judgement.verdict is self.verdict]
        return next((judgement for judgement in own if judgement.message), own[-1])

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Every number of every judgement by its name."""
        return {name: value for judgement in self.judged.judgements for name, value in judgement.numbers.items()}

    def picture(self, name: str) -> ErrorPicture | None:
        """Where the error is, for ops with one floating-point output that is not empty."""
        from moecheck.bounds import z_limit
        from moecheck.report.picture import picture_of

        out, values = self.judged.out, self.judged.values
        if out is None or values is None or not out.size:
            return None
        allowed = z_limit(out.size) * values.sigma
        return picture_of(out, values.true, allowed, kernel=name, case=self.given.words())


def examine(given: Given, outputs: Sequence[AnyArray], *, limits: Limits, numerics: Numerics | None) -> Examined:
    """Judge a call's outputs (NumPy arrays, one for each of the op's) as `moecheck kernels` judges a kernel's."""
    oracle = given.oracle()
    judged = judge(given.case, tuple(outputs), oracle, limits, numerics)
    return Examined(given=given, judged=judged, limits=limits)
