"""The assertion that takes the place of assert_close(atol=...)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.checks.judge import Limits
from moecheck.errors import MoecheckError, UsageError
from moecheck.formats import AnyArray
from moecheck.kernel import TieRule
from moecheck.numerics import Numerics
from moecheck.spec import MoESpec

from .capture import host_outputs
from .dump import Dump, write_dump
from .examine import Examined, examine
from .given import Given, given, given_case
from .names import check_tie, shown
from .semantics import AnySpec
from .words import again, failure

IDENTIFY = "identify"
KEEP = "MOECHECK_CAPTURE"  # environment variable: the folder into which a failing call is written


class MoeMismatch(AssertionError, MoecheckError):
    """The outputs are wrong, or the comparison shows nothing. examined: everything that was found."""

    def __init__(self, examined: Examined, last: str) -> None:
        super().__init__(examined.decisive.message)
        self.examined, self.last = examined, last

    def __str__(self) -> str:
        return failure(self.examined, self.last)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeMatch:
    """A comparison that passed. numbers: metric name -> value; smallest_factor is what would have been seen.

    contract: the rounding points that were found, in words. limit: what would have been seen, in words.
    """

    verdict: Verdict
    numbers: dict[str, float] = field(default_factory=dict)
    contract: str = ""
    limit: str = ""


def assert_moe_close(
    out: object,
    case_or_inputs: Case | Mapping[str, object],
    *,
    op: str | None = None,
    spec: AnySpec | None = None,
    numerics: Numerics | Literal["identify"] | None = None,
    tol: float | None = None,
    tie: TieRule | None = None,
) -> MoeMatch:
    """Equivalent to: assert that `out` deviates from the op's float64 reference by no more than rounding explains.

    out: the op's output, or a tuple of all of them, from torch (CPU or CUDA), jax or NumPy. case_or_inputs: a Case, or
    the op's arguments by the names of `moecheck list ops`, arrays of any of these frameworks (see `given`). op, spec:
    as there; a Case has its own. numerics: the rounding points that the kernel declares;
    "identify" finds them in the output (a second or more), which sees far smaller errors; None leaves every store free
    to be in the input's dtype. tol: of mismatch_ratio and of what counts as vacuous, 1e-2 by default; it excuses
    nothing. tie: the rule that a router declares for equal scores, "lowest_index"; None allows any.
    Raises MoeMismatch (an AssertionError) where the outputs are wrong, and where the comparison shows nothing because
    zeros would pass (VACUOUS) or too little is defined (INCONCLUSIVE); UsageError where the arguments do not fit.
    """
    __tracebackhide__ = True
    described = _described(case_or_inputs, op, spec)
    if not (numerics is None or isinstance(numerics, Numerics) or (isinstance(numerics, str) and numerics == IDENTIFY)):
        raise UsageError(f"numerics={shown(numerics)} must be a moecheck.Numerics, 'identify' or None.")
    declared = numerics if isinstance(numerics, Numerics) else None
    limits = Limits() if tol is None else Limits(tol=_checked(tol))
    check_tie(tie)
    outputs = host_outputs(described.case.op, out)
    examined = examine(
        described, outputs, limits=limits, numerics=declared, identified=isinstance(numerics, str), tie=tie
    )
    if examined.verdict is Verdict.PASS:
        return MoeMatch(
            verdict=Verdict.PASS, numbers=examined.numbers, contract=examined.contract, limit=examined.limit
        )
    own = case_or_inputs if isinstance(case_or_inputs, Case) else None
    raise MoeMismatch(examined, again(own, _kept(described, outputs, declared, tie)))


def _described(case_or_inputs: Case | Mapping[str, object], op: str | None, spec: AnySpec | None) -> Given:
    if isinstance(case_or_inputs, Case):
        own_spec = spec is None or (isinstance(spec, MoESpec) and spec == case_or_inputs.spec)
        if not (op is None or (isinstance(op, str) and op == case_or_inputs.op)) or not own_spec:
            raise UsageError("A Case has its own op and spec; leave out op= and spec=.")
        return given_case(case_or_inputs)
    if not isinstance(case_or_inputs, Mapping):
        kind = type(case_or_inputs).__name__
        raise UsageError(f"case_or_inputs must be a moecheck Case or a dict of the op's arguments, not {kind}.")
    return given(case_or_inputs, op=op, spec=spec)


def _checked(tol: float) -> float:
    if not (isinstance(tol, int | float) and not isinstance(tol, bool) and 0 <= tol < float("inf")):
        raise UsageError(f"tol={shown(tol)} must be a finite number of at least 0.")
    return float(tol)


def _kept(
    described: Given, outputs: tuple[AnyArray, ...], numerics: Numerics | None, tie: TieRule | None
) -> Path | None:
    """The file that a failing call was written to, where the environment asks for that."""
    folder = os.environ.get(KEEP)
    if not folder:
        return None
    case = described.case
    path = Path(folder) / f"{case.op}-{case.digest}.safetensors"
    write_dump(path, Dump(given=described, outputs=outputs, numerics=numerics, tie=tie))
    return path
