"""The judgement of one call: what its outputs are worth, and all that can be said about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moecheck.bounds import z_limit
from moecheck.checks.finding import FAILURES, Judgement, Verdict, verdict_of
from moecheck.checks.judge import Judged, Limits, judge
from moecheck.diagnosis import diagnose
from moecheck.formats import AnyArray
from moecheck.kernel import TieRule
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.report.picture import ErrorPicture, picture_of

from .contract import Contract, contract_of
from .given import Given

CONTRACT = "numerics"  # the check that is about the contract


@dataclass(frozen=True, kw_only=True)
class Examined:
    """One judged call: its outputs, the contract and the limits that they were judged under, and the judgements."""

    given: Given
    outputs: tuple[AnyArray, ...]
    oracle: Oracle
    numerics: Numerics | None
    limits: Limits
    judged: Judged

    @cached_property
    def verdict(self) -> Verdict:
        """Of all judgements together: a failure first, then whatever is no pass."""
        return verdict_of(self.judged.judgements)

    @cached_property
    def decisive(self) -> Judgement:
        """The judgement that explains the verdict."""
        own = [judgement for judgement in self.judged.judgements if judgement.verdict is self.verdict]
        return next((judgement for judgement in own if judgement.message), own[-1])

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Every number of every judgement by its name."""
        return {name: value for judgement in self.judged.judgements for name, value in judgement.numbers.items()}

    @cached_property
    def contract(self) -> str:
        """What was found of the rounding points, in words; empty where nobody looked for them."""
        return next((j.message for j in self.judged.judgements if j.check == CONTRACT), "")

    @cached_property
    def limit(self) -> str:
        """What a passing comparison would have seen, in words; empty where no statistic says."""
        factor = self.numbers.get("smallest_factor")
        if self.verdict is not Verdict.PASS or factor is None or self.judged.out is None:
            return ""
        most = z_limit(self.judged.out.size)
        return f"A factor of 1 ± {factor:.1g} on all of the output would show, and {most:.1f} sigma in one element."

    @cached_property
    def diagnosis(self) -> str:
        """What a failure looks like, in words; empty for other verdicts and where nothing is known.

        It takes longer than the judging, so it is not made before somebody asks: Hypothesis fails many times.
        """
        readable = all(j.verdict is Verdict.PASS for j in self.judged.judgements if j.check == "contract")
        if self.verdict not in FAILURES or not readable:
            return ""
        with np.errstate(all="ignore"):
            looks = diagnose(self.given.case, self.outputs, self.oracle, self.numerics)
        return looks.words() if looks else ""

    def picture(self, name: str) -> ErrorPicture | None:
        """Where the error is, for ops with one floating-point output that is not empty."""
        out, values = self.judged.out, self.judged.values
        if out is None or values is None or not out.size:
            return None
        allowed = z_limit(out.size) * values.sigma
        with np.errstate(all="ignore"):
            return picture_of(out, values.true, allowed, kernel=name, case=self.given.words())


@np.errstate(all="ignore")  # what inputs near a format's end lead to is judged, it must not warn in someone's tests
def examine(
    given: Given,
    outputs: tuple[AnyArray, ...],
    *,
    limits: Limits,
    numerics: Numerics | None,
    identified: bool,
    tie: TieRule | None = None,
) -> Examined:
    """Judge a call's outputs (NumPy arrays, one for each of the op's) as `moecheck kernels` judges a kernel's.

    numerics: the declared contract. identified: whether to look for the contract in the output, verify the declared
    one, and judge under what was found where nothing is declared. tie: the declared rule for equal routing scores.
    """
    oracle = given.oracle()
    contract = contract_of(given, outputs, numerics) if identified else Contract(numerics=numerics)
    judged = judge(
        given.case, outputs, oracle, limits, contract.numerics, tie=tie, declared=not identified or numerics is not None
    )
    if contract.judgement is not None:
        judged = replace(judged, judgements=(*judged.judgements, contract.judgement))
    return Examined(
        given=given, outputs=outputs, oracle=oracle, numerics=contract.numerics, limits=limits, judged=judged
    )
