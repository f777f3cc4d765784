"""The cases that mutants are planted in: those that `moecheck kernels` runs in the same profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from moecheck.cases import Case
from moecheck.curated import cases_for
from moecheck.mutants import Mutant, all_mutants
from moecheck.ops import OPS
from moecheck.quantization import SCHEMES

from .variants import CLASSES, REQUANTISED, STATIC, Known, Variant, variant_of

# Schemes of quantised weights, of each way of scaling one.
WEIGHTS = (
    "fp8-block",
    "fp8-channel",
    "fp8-tensor-static",
    "int4-group32",
    "int4-group64-zeros",
    "mxfp4",
    "nvfp4",
    "nvfp4-swizzled",
)
VARIANTS = 64  # of a seed, from which one is taken whose contract a mutant needs
REQUANTISED_OPS = ("fused_experts", "moe_layer")
JUDGED_OPS = (
    *REQUANTISED_OPS,
    "grouped_gemm",
    "act_and_mul",
    "unpermute",
    "topk_routing",
    "expert_outputs",
    "batched_experts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """Mutants of one op that are planted into the same legal variant in one seed."""

    op: str
    seed: int
    variant: Variant
    mutants: tuple[Mutant, ...]


def ops_with_mutants() -> tuple[str, ...]:
    """The ops of which there are mutants, in the order of the table of ops."""
    return tuple(op for op in OPS if any(op in one.ops for one in all_mutants()))


@lru_cache(maxsize=64)
def corpus(op: str, profile: str, seed: int, *, drawn: bool = True) -> tuple[Case, ...]:
    """The profile's cases of an op with tokens, smallest first: a mutant is given up where it is first seen.

    drawn: whether the drawn ones are among them.
    """
    quantizations = tuple(SCHEMES[name] for name in WEIGHTS) if op == "fused_experts" else ()
    examples = None if drawn else 0
    found = cases_for(op, profile=profile, seed=seed, quantizations=quantizations, examples=examples)
    cases = [case for case in found if case.num_tokens]
    return tuple(sorted(cases, key=lambda case: (case.elements, case.num_tokens)))


def in_turn(op: str, profile: str, seed: int) -> Iterator[Case]:
    """The cases of `corpus`. The hundreds that a nightly run draws, which takes seconds, come last: few need them."""
    first = corpus(op, profile, seed, drawn=False) if profile == "nightly" else ()
    yield from first
    known = {case.digest for case in first}
    yield from (case for case in corpus(op, profile, seed) if case.digest not in known)


def planted(op: str, seed: int, mutants: tuple[Mutant, ...]) -> list[Planted]:
    """The op's mutants by the legal variant that each is planted in, which differs from seed to seed."""
    own = [one for one in mutants if op in one.ops]
    plain = tuple(one for one in own if one.under is None)
    found = [Planted(op=op, seed=seed, variant=variant_of(seed), mutants=plain)] if plain else []
    by_number: dict[tuple[int, bool], list[Mutant]] = {}
    for one in own:
        if one.under is not None:
            by_number.setdefault(_number_for(one, seed), []).append(one)
    for (number, static), group in by_number.items():
        variant = variant_of(number, requantised=True, static=static)
        found.append(Planted(op=op, seed=seed, variant=variant, mutants=tuple(group)))
    return found


def _number_for(one: Mutant, seed: int) -> tuple[int, bool]:
    """The first variant of the seed under whose contract the mutant has a meaning; whether its scales are static."""
    assert one.under is not None
    static = not any(one.under(contract) for contract in REQUANTISED)
    assert not static or any(one.under(contract) for contract in STATIC), f"no legal variant can have the bug {one.id}"
    numbers = range(VARIANTS * seed, VARIANTS * (seed + 1))
    wanted = (n for n in numbers if one.under(variant_of(n, requantised=True, static=static).contract))
    return next(wanted), static


def legal_trial(name: str, number: int) -> tuple[Case, Variant]:
    """The case and the legal variant of a number in a class of numerics: other inputs and roundings for each.

    name: key of CLASSES.
    """
    requantised = name == "fp8"
    ops = REQUANTISED_OPS if requantised else JUDGED_OPS
    op = ops[number % len(ops)]
    cases = corpus(op, "default", number % 4)
    drawn = cases[number // len(ops) % len(cases)]
    case = replace(drawn, dtype=CLASSES[name], seed=1000 + number)
    weights = case.spec.experts.quantization
    static = requantised and weights is not None and weights.static_activations
    known: tuple[Known, ...] = ("declared", "found", "unknown")
    return case, variant_of(number, requantised=requantised, static=static, known=known)
