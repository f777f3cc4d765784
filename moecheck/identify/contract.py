"""Finds the contract of a kernel: the rounding points with which the reference reproduces its outputs bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moecheck.bounds import disagreement_limit
from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle

from .candidates import EXPERT_OPS
from .quantisers import arithmetics, rarity
from .result import Identified, stored
from .search import Search, pool_of

# Agreement below which nothing is explained. Where fp32 kernels store in bf16, one flip moves a whole row, and a rule
# that allows for many of them would allow for anything; what is no contract agrees in less than a hundredth there.
LEAST = 0.25
NEAR, LEAD = 0.5, 0.05
SAME = 0.005  # of a probe's outputs, within which two arithmetics explain as much: flips of the kernel's sums


@np.errstate(all="ignore")  # a candidate may overflow where the kernel does not
def identify(
    observations: Sequence[tuple[Case, AnyArray]],
    oracle: Oracle,
    *,
    requantising: bool = True,
    declared: Numerics | None = None,
) -> Identified:
    """The contract whose reference agrees best with a kernel's outputs, averaged over the cases.

    The arithmetic of its quantisers, which changes one code in a million, is then that which cases of the stratum
    `quantiser` show; they tell nothing else, and a kernel that they do not explain keeps what others show.
    observations: cases of one op, each with the kernel's `observation`. The search is over rounding
    points only, never over factors, indices or functions: what a contract cannot explain stays unexplained.
    requantising: whether contracts with quantisers are tried where no other explains the outputs. declared: where the
    search starts; if it explains the outputs as well as a simulated kernel of it, only contracts near it are compared.
    """
    probes = [(case, out) for case, out in observations if case.stratum == "quantiser"]
    if probes and len(probes) < len(observations):
        ordinary = [(case, out) for case, out in observations if case.stratum != "quantiser"]
        found = identify(ordinary, oracle, requantising=requantising, declared=declared)
        return replace(found, numerics=_arithmetic(found.numerics, probes, oracle)) if found.known else found
    if not observations:
        raise ValueError("A contract is identified from one output at least.")
    cases = tuple(case for case, _ in observations)
    pool = pool_of(cases, oracle)
    search = Search(pool, [out for _, out in observations])
    rows = sum(len(out) for _, out in observations)
    best = None if declared is None else search.near(declared)
    if best is None or not is_known(search.agreement(best), pool.expected(best), rows=rows):
        best = search.best()
    known = is_known(search.agreement(best), pool.expected(best), rows=rows)
    if requantising and not known and cases[0].op in EXPERT_OPS:
        best = max(best, search.best_requantising(), key=search.agreement)
    plainest, *others = search.equivalent(best)
    compared = {other: search.compare(other, plainest) for other in search.rivals(plainest)}
    runner_up = max(compared, key=lambda c: (compared[c].first, -stored(c)), default=None)
    agreement, expected = search.agreement(plainest), pool.expected(plainest)
    known = is_known(agreement, expected, rows=rows)
    return Identified(
        numerics=plainest,
        agreement=agreement,
        expected=expected,
        runner_up=runner_up,
        runner_up_agreement=0.0 if runner_up is None else compared[runner_up].first,
        equivalent=tuple(others),
        stores=pool.stores,
        elements=search.elements,
        known=known,
        dtypes=pool.dtypes,
        by_case=() if known else _by_case(observations, oracle),
        compare=search.compare,
        discordant=search.discordant,
    )


def _arithmetic(numerics: Numerics, probes: Sequence[tuple[Case, AnyArray]], oracle: Oracle) -> Numerics:
    """The contract with the arithmetic of quantisers that explains the probes; as it is where none does."""
    if not numerics.requantises:
        return numerics
    pool = pool_of(tuple(case for case, _ in probes), oracle)
    search = Search(pool, [out for _, out in probes])
    agreement = {other: search.agreement(other) for other in arithmetics(numerics)}
    most = max(agreement.values())
    alike = [other for other, share in agreement.items() if share >= most - SAME]
    if numerics in alike:
        return numerics
    best = min(alike, key=rarity)
    return best if is_known(agreement[best], pool.expected(best), rows=sum(len(out) for _, out in probes)) else numerics


def is_known(agreement: float, expected: float, *, rows: int) -> bool:
    """Whether a contract explains the outputs: agreement is what a simulated kernel with fp32 accumulation reaches.

    The simulated kernel has the contract's stores and the references' model of fp32 sums. Each of its bits that differs
    is a flip: a value so near to a rounding boundary that accumulation carries it across. rows: of all outputs.
    """
    return agreement >= LEAST and 1.0 - agreement <= disagreement_limit(1.0 - expected, rows=rows)


def is_near(identified: Identified) -> bool:
    """Whether the best contract is much better than any other, although it does not explain the outputs."""
    lead = identified.agreement - identified.runner_up_agreement
    return identified.agreement >= NEAR and (identified.runner_up is None or lead >= LEAD)


def _by_case(observations: Sequence[tuple[Case, AnyArray]], oracle: Oracle) -> tuple[tuple[str, Identified], ...]:
    """The contract of each case, where each has one of its own; () where any is unknown or there is one case only."""
    if len(observations) == 1:
        return ()
    found = [(case.id, identify([(case, out)], oracle, requantising=False)) for case, out in observations]
    return tuple(found) if all(identified.known for _, identified in found) else ()
