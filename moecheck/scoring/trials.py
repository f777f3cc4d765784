"""What worker processes do for the score: plant mutants, judge correct kernels, and look for what is just seen.

Everything goes in and out by name, since a mutant's change is a function that no pipe can carry.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from threadpoolctl import threadpool_limits

from moecheck import draw
from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.curated import cases_for
from moecheck.formats import AnyArray, store, to_float64
from moecheck.mutants import Mutant, all_mutants
from moecheck.mutants.call import call_of, slots_of, with_slots
from moecheck.oracle import Oracle

from .corpus import Planted, in_turn, legal_trial, planted
from .coverage import Combination, combination_of
from .outputs import honest_outputs, outputs_with
from .variant_kernel import output_of
from .variants import CLASSES, Variant, variant_of
from .verdicts import judged

FACTOR_BITS = range(5, 23)  # factors 1 + 2^-b on the routing weights
SIGMAS = (8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 16.0, 20.0)
SLIGHTLY = 4.0  # standard deviations by which many elements are off
COUNTS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
PLAIN_CASES = 3
WIDE = Case(op="fused_experts", num_tokens=256, hidden_size=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One mutant in one op and seed. cases: on which it had a meaning. caught: whether a check saw it on one of them.

    seen_on: the first of these. checks: all that saw it, on any case where all were tried. died_on: their combinations
    of semantics. differed: whether it changed some output at all.
    """

    mutant: str
    op: str
    seed: int
    cases: int = 0
    caught: bool = False
    seen_on: str = ""
    checks: frozenset[str] = frozenset()
    died_on: frozenset[Combination] = frozenset()
    differed: bool = False
    least: str = ""


@dataclass(slots=True, kw_only=True)
class _Tally:
    cases: int = 0
    seen_on: str = ""
    checks: set[str] = field(default_factory=set)
    died_on: set[Combination] = field(default_factory=set)
    differed: bool = False
    passed_on: str = ""


def kills(op: str, profile: str, seed: int, ids: tuple[str, ...], part: int, parts: int, known: str) -> list[Kill]:
    """What became of the mutants with these ids in one op and seed.

    parts: 0 to give each mutant up where it is first seen; else every case is tried, those of number `part` modulo
    `parts` here. known: `declared`, or `unknown` for kernels that say nothing of where they round.
    """
    mutants = tuple(one for one in all_mutants() if one.id in ids)
    found: list[Kill] = []
    with threadpool_limits(1, "blas"):
        for group in planted(op, seed, mutants):
            variant = group.variant
            if known == "unknown":
                if variant.contract.requantises:
                    continue
                variant = _unknown(group)
            found += _kills(group, variant, profile, part, parts)
    return found


def _unknown(group: Planted) -> Variant:
    return variant_of(group.seed, known=("unknown",))


def _kills(group: Planted, variant: Variant, profile: str, part: int, parts: int) -> list[Kill]:
    tallies = {one.id: _Tally() for one in group.mutants}
    open_mutants: list[Mutant] = list(group.mutants)
    for number, case in enumerate(in_turn(group.op, profile, group.seed)):
        if not open_mutants:
            break
        if parts and number % parts != part:
            continue
        oracle = Oracle()
        right = None
        for one in list(open_mutants):
            if not one.applies(case, variant.contract):
                continue
            tally = tallies[one.id]
            tally.cases += 1
            outputs = outputs_with(one, case, oracle, variant)
            if one.equivalent:
                right = right or honest_outputs(case, oracle, variant)
                tally.differed |= not _same(outputs, right)
            result = judged(case, outputs, oracle, variant)
            if not result.failed:
                tally.passed_on = tally.passed_on or case.id
                continue
            tally.seen_on = tally.seen_on or case.id
            tally.checks |= result.checks
            tally.died_on.add(combination_of(case, variant.contract))
            if not parts:
                open_mutants.remove(one)
    return [
        Kill(
            mutant=name,
            op=group.op,
            seed=group.seed,
            cases=tally.cases,
            caught=bool(tally.seen_on),
            seen_on=tally.seen_on,
            checks=frozenset(tally.checks),
            died_on=frozenset(tally.died_on),
            differed=tally.differed,
            least=tally.passed_on,
        )
        for name, tally in tallies.items()
    ]


def _same(outputs: tuple[AnyArray, ...], right: tuple[AnyArray, ...]) -> bool:
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(outputs, right, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """Correct kernels that were judged. alarms: what was said of those that failed. undecided: neither."""

    name: str
    numbers: tuple[int, ...]
    variants: frozenset[str]
    alarms: tuple[str, ...]
    undecided: int


def alarms(name: str, numbers: tuple[int, ...]) -> Judging:
    """Judge the legal variants of these numbers, each on a case of its own. name: key of CLASSES."""
    said, undecided, variants = [], 0, set()
    with threadpool_limits(1, "blas"):
        for number in numbers:
            case, variant = legal_trial(name, number)
            oracle = Oracle()
            result = judged(case, honest_outputs(case, oracle, variant), oracle, variant)
            variants.add(variant.words())
            if result.failed:
                said.append(f"{name} variant {number} ({variant.words()}) on {case.id}: {result.message}")
            undecided += result.verdict in (Verdict.INCONCLUSIVE, Verdict.VACUOUS)
    return Judging(name=name, numbers=numbers, variants=frozenset(variants), alarms=tuple(said), undecided=undecided)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen in one class and seed. factors: bits b of the factors 1 + 2^-b. sigmas, counts: as tried."""

    name: str
    seed: int
    factors: frozenset[int]
    sigmas: frozenset[float]
    counts: frozenset[int]


def limits(name: str, seed: int) -> Seen:
    """Which of the errors that are tried are seen in one class of numerics and one seed."""
    variant = variant_of(seed, requantised=name == "fp8")
    plain = [
        case
        for case in cases_for("fused_experts", profile="default", seed=seed, dtypes=(CLASSES[name],))
        if (case.stratum, case.load, case.layout) == ("random", "random", "contiguous")
        and case.num_tokens >= 64
        and case.num_local_experts is None
        and case.spec.experts.activation == "silu"
    ]
    found: set[int] = set()
    with threadpool_limits(1, "blas"):
        for case in sorted(plain, key=lambda case: case.elements)[:PLAIN_CASES]:
            oracle = Oracle()
            call = call_of(case, oracle)
            for bits in set(FACTOR_BITS) - found:
                factored = with_slots(call, weights=slots_of(call).weights * (1.0 + 2.0**-bits))
                out = store(output_of(factored, variant).astype(np.float64), case.dtype)
                if judged(case, (out,), oracle, variant).failed:
                    found.add(bits)
        sigmas, counts = _elements(name, seed, variant)
        return Seen(name=name, seed=seed, factors=frozenset(found), sigmas=sigmas, counts=counts)


def _elements(name: str, seed: int, variant: Variant) -> tuple[frozenset[float], frozenset[int]]:
    """Which single errors, and which numbers of small ones, are seen among 65,536 elements."""
    case, oracle = replace(WIDE, dtype=CLASSES[name], seed=seed), Oracle()
    values = oracle.values(case, variant.contract)
    (honest,) = honest_outputs(case, oracle, variant)
    right, about = to_float64(honest), values.true if values.ensemble is None else values.rounded
    order = np.argsort(draw.integers(("wrong elements", seed), (right.size,), below=1 << 32), kind="stable")

    def caught(count: int, size: float) -> bool:
        wrong = right.copy().reshape(-1)
        at = order[:count]
        wrong[at] = about.reshape(-1)[at] + size * values.sigma.reshape(-1)[at]
        return judged(case, (store(wrong.reshape(right.shape), case.dtype),), oracle, variant).failed

    sigmas = frozenset(size for size in SIGMAS if caught(1, size))
    return sigmas, frozenset(count for count in COUNTS if caught(count, SLIGHTLY))
