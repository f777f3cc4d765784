"""One call, tried: what criteria, and moecheck, say of right outputs, of zeros and NaN, and of every mutant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moecheck.checks.finding import FAILURES, Verdict, verdict_of
from moecheck.checks.judge import Limits, judge
from moecheck.formats import AnyArray, store, to_float64
from moecheck.kernel import TieRule
from moecheck.mutants import Mutant, mutants_for, mutated_outputs
from moecheck.mutants.call import Call
from moecheck.numerics import Numerics
from moecheck.scoring.outputs import outputs_with
from moecheck.scoring.variants import Variant

from .criterion import Criterion
from .honest import right_outputs, variants_of
from .subject import Subject, is_value_op

DROPPED_EXPERT = "expert_dropped"
# Outputs that are wrong whatever the maths are.
BLANKS = ("zeros", "one NaN", "a row of NaN", "all NaN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sigmas:
    """A tolerance in standard deviations of an honest kernel's error, over elements: 1 %, 50 % and 99 % of them."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MutantTrial:
    """A mutant's output on one call. accepted: by each criterion. verdict: moecheck's, under the mutant's contract.

    It differs in at least one bit from the output of the same kernel without the bug; others are not tried.
    """

    mutant: str
    accepted: tuple[bool, ...]
    verdict: Verdict

    @property
    def seen(self) -> bool:
        """Whether moecheck fails it."""
        return self.verdict in FAILURES


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One call. Sequences over criteria come in the order of the criteria that were tried.

    rms, largest: of the reference. sigmas: None where the op has no sigma, for routers. honest: number of right
    outputs. refused: of these, by each criterion. false_alarms: of these, moecheck failed so many. blanks: name in
    BLANKS -> accepted by each criterion. equal: mutants whose output was that of a right kernel, bit for bit. untried:
    those that cannot be simulated under this contract.
    """

    case: str
    note: str
    rms: float
    largest: float
    sigmas: tuple[Sigmas | None, ...]
    honest: int
    refused: tuple[int, ...]
    false_alarms: int
    blanks: dict[str, tuple[bool, ...]]
    mutants: tuple[MutantTrial, ...]
    equal: tuple[str, ...]
    untried: tuple[str, ...]


@np.errstate(all="ignore")  # what overflows is judged
def examine(subject: Subject, criteria: Sequence[Criterion]) -> Trial:
    """Everything about one call."""
    reference = subject.reference
    right = {variant: right_outputs(subject, variant) for variant in variants_of(subject)}
    mutants, equal, untried = list[MutantTrial](), list[str](), list[str]()
    for one in mutants_for(subject.case, subject.contract):
        made = _made(one, subject, right)
        if made is None:
            untried.append(one.id)
        elif made.equal:
            equal.append(one.id)
        else:
            accepted = tuple(criterion.accepts(made.outputs, reference) for criterion in criteria)
            verdict = _verdict(subject, made.outputs, made.contract)
            mutants.append(MutantTrial(mutant=one.id, accepted=accepted, verdict=verdict))
    size = to_float64(reference[0])
    return Trial(
        case=subject.case.id,
        note=subject.note,
        rms=float(np.sqrt(np.mean(np.square(size)))),
        largest=float(np.max(np.abs(size))),
        sigmas=tuple(sigmas_of(criterion, subject) for criterion in criteria),
        honest=len(right),
        refused=tuple(sum(not criterion.accepts(o, reference) for o in right.values()) for criterion in criteria),
        false_alarms=sum(_verdict(subject, outputs, one.contract) in FAILURES for one, outputs in right.items()),
        blanks={
            name: tuple(criterion.accepts(outputs, reference) for criterion in criteria)
            for name, outputs in _blanks(next(iter(right.values())))
        },
        mutants=tuple(mutants),
        equal=tuple(equal),
        untried=tuple(untried),
    )


@np.errstate(all="ignore")
def sigmas_of(criterion: Criterion, subject: Subject) -> Sigmas | None:
    """How many standard deviations a criterion's tolerance is; None for routers, whose errors are those of fp32.

    Of a global statistic: the error's L2 norm that it lets pass, over that of an honest kernel, sqrt(sum sigma^2).
    """
    if not is_value_op(subject.case):
        return None
    values = subject.oracle.values(subject.case, subject.contract)
    if criterion.elementwise or criterion.max_abs is not None:
        ratios = criterion.room(values.true) / values.sigma
        ratios = ratios[np.isfinite(ratios)]
        if not ratios.size:
            return None
        low, median, high = np.quantile(ratios, (0.01, 0.5, 0.99))
        return Sigmas(low=float(low), median=float(median), high=float(high))
    assert criterion.relative_size is not None
    share = np.sqrt(np.sum(np.square(values.sigma)) / np.sum(np.square(values.true)))
    ratio = float(criterion.relative_size / share)
    return Sigmas(low=ratio, median=ratio, high=ratio)


def same(outputs: tuple[AnyArray, ...], others: tuple[AnyArray, ...]) -> bool:
    """Whether two kernels returned the same numbers in the same formats; -0 is 0, and NaN is no number."""
    pairs = zip(outputs, others, strict=True)
    return all(a.dtype == b.dtype and np.array_equal(to_float64(a), to_float64(b)) for a, b in pairs)


class _Made(NamedTuple):
    """What a kernel with a bug returns, where it rounds, and whether it computes what it computes without the bug."""

    outputs: tuple[AnyArray, ...]
    contract: Numerics
    equal: bool


def _made(one: Mutant, subject: Subject, right: Mapping[Variant, tuple[AnyArray, ...]]) -> _Made | None:
    """The bug in a kernel of the subject's contract; None where that cannot be simulated.

    What a bug that is given as a bare value does before its last store is not known. So that store is its only one; and
    where a kernel requantises it cannot be tried, for it would lack the quantisers, which is another bug.
    """
    case, oracle, contract = subject.case, subject.oracle, subject.contract
    mutation, variant = one.mutate(case, oracle, contract), Variant(contract=contract)
    if isinstance(mutation, np.ndarray):
        bare: tuple[AnyArray, ...] = (store(mutation, case.dtype),)
        if one.under is not None:  # a bug in the contract's quantisers, whose value has the other stores too
            return _Made(outputs_with(one, case, oracle, variant), contract, same(bare, _exact(subject, contract)))
        if contract.requantises:
            return None
        return _Made(bare, Numerics(), same(bare, _exact(subject, Numerics())))
    outputs = outputs_with(one, case, oracle, variant)
    if isinstance(mutation, Call) and mutation.case.key != case.key:
        # A changed spec draws other errors of the routing weights: then what counts is the output without any errors.
        exact = mutated_outputs(one, case, oracle, contract)
        return _Made(outputs, contract, same(exact, _exact(subject, contract)))
    return _Made(outputs, contract, same(outputs, right[variant]))


def _exact(subject: Subject, contract: Numerics) -> tuple[AnyArray, ...]:
    """What a right kernel returns whose sums have no errors."""
    if not is_value_op(subject.case):
        weights, ids = subject.oracle.outputs(subject.case)
        return weights.astype(np.float32), ids
    return (store(subject.oracle.values(subject.case, contract).rounded, subject.case.dtype),)


def _verdict(subject: Subject, outputs: tuple[AnyArray, ...], contract: Numerics) -> Verdict:
    """The verdict of moecheck on a kernel that declares its contract."""
    tie: TieRule | None = "lowest_index" if subject.case.op == "topk_routing" else None
    return verdict_of(judge(subject.case, outputs, subject.oracle, Limits(), contract, tie=tie).judgements)


def _blanks(right: tuple[AnyArray, ...]) -> Iterator[tuple[str, tuple[AnyArray, ...]]]:
    """Outputs by name in BLANKS: a right kernel's with values replaced. A router's ids stay as they are."""
    first, *others = right
    yield "zeros", (np.zeros_like(first), *others)
    everything = (slice(None), slice(None))
    for name, where in (("one NaN", (0, 0)), ("a row of NaN", (0, slice(None))), ("all NaN", everything)):
        poisoned = first.copy()
        poisoned[where] = np.nan
        yield name, (poisoned, *others)
