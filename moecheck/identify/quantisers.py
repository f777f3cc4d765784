"""The requantising contracts that identification tries where no contract without a quantiser explains the outputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from moecheck.numerics import INPUT, QUANTISERS, Numerics
from moecheck.quantizer import CODES, NO_EPS, Division, Quantizer, ScaleFormat

FORMATS = ("fp8_e4m3fn", "fp8_e5m2", "int8")  # tried first; others are neighbours of these
GROUPS = (0, 128, 64)
COMMONEST = (128, 0, 64, 32)
MICRO = ("fp4_e2m1", "fp8_e4m3fn")
EXPONENTS: tuple[ScaleFormat, ...] = ("power_of_two", "floor", "cutlass", "half_up")
SCALES: tuple[ScaleFormat, ...] = ("float", "power_of_two")
DIVISIONS: tuple[Division, ...] = ("divide", "multiply")
# Least amaxes: of vLLM and SGLang, DeepGEMM, torchao, vLLM's scales by rows, and none.
EPSILONS = (1e-10, 1e-4, 1e-12, 1.0 / 512.0, NO_EPS)
# What decides the bits that a quantiser is given; a wrong store behind it leaves most of the output's bits as they are.
BEFORE = ("gate_up", "act", "act_times_up")


def requantising(*, static: bool = False, microscaling: bool = False) -> list[Numerics]:
    """Contracts with a quantiser between the GEMMs, or the same one before both, over all stores before it.

    static: whether the scales of static quantisers are given. microscaling: whether groups of 32 are tried, too.
    """
    quantisers = [
        Quantizer(format=name, group=group, scale=scale) for name, group, scale in product(FORMATS, GROUPS, SCALES)
    ]
    quantisers += [Quantizer(format=name, static=True) for name in FORMATS] if static else []
    if microscaling:
        quantisers += [Quantizer(format=name, group=32, scale=scale) for name, scale in product(MICRO, EXPONENTS)]
    found = []
    for formats in product(("fp32", INPUT), repeat=len(BEFORE)):
        stores = Numerics(**dict(zip(BEFORE, formats, strict=True)))  # type: ignore[arg-type]  # names of stores
        for quantizer in quantisers:
            found += [replace(stores, a2_quant=quantizer), replace(stores, a1_quant=quantizer, a2_quant=quantizer)]
    return found


def quantiser_neighbours(numerics: Numerics) -> list[Numerics]:
    """Contracts that differ from `numerics` in one property of its quantisers, or in which GEMM has one."""
    some = numerics.a2_quant or numerics.a1_quant
    if some is None:
        return []
    found = [replace(numerics, a1_quant=a1, a2_quant=a2) for a1 in (None, some) for a2 in (None, some)]
    for quantizer in _neighbours(some):
        for names in (QUANTISERS, *((name,) for name in QUANTISERS)):
            changes = {name: quantizer for name in names if getattr(numerics, name) is not None}
            found.append(replace(numerics, **changes))  # type: ignore[arg-type]  # fields that hold quantisers
    return [other for other in dict.fromkeys(found) if other != numerics]


def arithmetics(numerics: Numerics) -> list[Numerics]:
    """The contract with every arithmetic that its quantisers may have: divisions, and the least amax."""
    found = []
    for division, amax, eps in product(DIVISIONS, DIVISIONS, EPSILONS):
        own = {name: getattr(numerics, name) for name in QUANTISERS}
        changed = {
            name: replace(quantizer, division=division, **({} if quantizer.static else {"amax": amax, "eps": eps}))
            for name, quantizer in own.items()
            if quantizer is not None
        }
        found.append(replace(numerics, **changed))
    return list(dict.fromkeys(found))


def differs_in_arithmetic(first: Numerics, second: Numerics) -> bool:
    """Whether quantisers of two contracts differ, and in their arithmetic alone."""
    return (
        first != second
        and replace(first, a1_quant=second.a1_quant, a2_quant=second.a2_quant) == second
        and (second in arithmetics(first) or first in arithmetics(second))
    )


def rarity(numerics: Numerics) -> tuple[int, ...]:
    """The smaller, the commoner the contract's quantisers are, among those that give nearly the same bits."""
    a1, a2 = numerics.a1_quant, numerics.a2_quant
    ranks = [
        (
            list(CODES).index(q.format),
            COMMONEST.index(q.group) if q.group in COMMONEST else len(COMMONEST),
            int(q.scale != "float"),
            int(q.division != "divide"),
            int(q.amax != "divide"),
            EPSILONS.index(q.eps) if q.eps in EPSILONS else len(EPSILONS),
        )
        for q in (a1, a2)
        if q
    ]
    return (int(a1 != a2), *(sum(rank) for rank in zip(*ranks, strict=True)))


def _neighbours(quantizer: Quantizer) -> list[Quantizer]:
    divisions = [replace(quantizer, division="divide"), replace(quantizer, division="multiply")]
    found = [replace(quantizer, format=name) for name in CODES]
    if quantizer.static:
        return [*found, *divisions]
    found += [replace(quantizer, group=group) for group in GROUPS]
    scales = (*SCALES, *EXPONENTS[1:]) if quantizer.group == 32 else SCALES
    found += [replace(quantizer, scale=scale) for scale in scales]
    found += [replace(quantizer, rounding="truncate"), replace(quantizer, rounding="nearest")]
    found += [replace(quantizer, amax="divide"), replace(quantizer, amax="multiply")]
    return [*found, *divisions]
