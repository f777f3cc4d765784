"""The registry of mutants: a decorator adds one, and each module of this package is walked for them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

from moecheck.cases import Case
from moecheck.errors import HarnessError
from moecheck.formats import AnyArray, store, to_float64
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle

from .call import Call, Mutation, Prediction, Slots, call_of, predict, rounded, slots_of, value

Change = Callable[[Call], Mutation]
AnyChange = TypeVar("AnyChange", bound=Change)
PACKAGE = "moecheck.mutants"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A known bug as one change of a reference's call.

    name: as in the list of known bugs. variant: which of several parameters. words: what is wrong, for people.
    sources: where it happened, OWNER/REPO#NUMBER. ops: whose outputs it changes. when: on which cases it has a meaning.
    fitted: it has numbers (a factor, a row, an expert) that diagnosis finds from the output itself. rough: where it
    rounds is known, and not every bit of what a kernel makes there. slight: it may stay within rounding's own size.
    """

    name: str
    words: str
    ops: frozenset[str]
    change: Change
    when: Callable[[Case], bool]
    sources: tuple[str, ...] = ()
    variant: str = ""
    fitted: bool = False
    rough: bool = False
    slight: bool = False

    @property
    def id(self) -> str:
        """Unique: the name and the variant."""
        return f"{self.name}/{self.variant}" if self.variant else self.name

    @property
    def family(self) -> str:
        """The class of bugs it belongs to: the module that defines it."""
        return self.change.__module__.rpartition(".")[2]

    def applies(self, case: Case) -> bool:
        """Whether it has a meaning on this case; it may still be equal to the right output there."""
        return case.op in self.ops and case.num_tokens > 0 and self.when(case)

    def mutate(self, case: Case, oracle: Oracle) -> Mutation:
        return self.change(call_of(case, oracle))


_MUTANTS: dict[str, Mutant] = {}


def mutant(
    name: str,
    words: str,
    *ops: str,
    when: Callable[[Case], bool] | None = None,
    sources: tuple[str, ...] = (),
    variant: str = "",
    fitted: bool = False,
    rough: bool = False,
    slight: bool = False,
) -> Callable[[AnyChange], AnyChange]:
    """Register the decorated change of a call as a mutant; returns the function unchanged."""

    def register(change: AnyChange) -> AnyChange:
        made = Mutant(
            name=name,
            words=words,
            ops=frozenset(ops),
            change=change,
            when=when or (lambda case: True),
            sources=sources,
            variant=variant,
            fitted=fitted,
            rough=rough,
            slight=slight,
        )
        if made.id in _MUTANTS:
            raise HarnessError(f"Two mutants are named {made.id!r}.")
        _MUTANTS[made.id] = made
        return change

    return register


@cache
def all_mutants() -> tuple[Mutant, ...]:
    """Every mutant, module by module in alphabetical order."""
    package = importlib.import_module(PACKAGE)
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        importlib.import_module(f"{PACKAGE}.{info.name}")
    return tuple(_MUTANTS.values())


def mutants_for(case: Case) -> tuple[Mutant, ...]:
    """The mutants that have a meaning on this case."""
    return tuple(m for m in all_mutants() if m.applies(case))


def mutated_slots(one: Mutant, case: Case, oracle: Oracle) -> Slots:
    """What a router with this bug returns: weights [T, k'] float64 and ids (op topk_routing)."""
    mutation = one.mutate(case, oracle)
    assert isinstance(mutation, Call)
    return slots_of(mutation)


def mutated_value(one: Mutant, case: Case, oracle: Oracle) -> AnyArray:
    """The unrounded output [rows, columns] float64 of a kernel with this bug."""
    return value(one.mutate(case, oracle))


def mutated_prediction(one: Mutant, case: Case, oracle: Oracle, numerics: Numerics | None) -> Prediction:
    """The unrounded output of a kernel with this bug and the sigma of its errors under a contract."""
    return predict(one.mutate(case, oracle), numerics, oracle.values(case, numerics).sigma, case.dtype)


def mutated_outputs(one: Mutant, case: Case, oracle: Oracle, numerics: Numerics | None) -> tuple[AnyArray, ...]:
    """What a kernel with this bug and this contract returns: the op's outputs in their storage dtypes."""
    if case.op == "topk_routing":
        slots = mutated_slots(one, case, oracle)
        with np.errstate(over="ignore", invalid="ignore"):
            return slots.weights.astype(np.float32), slots.ids.astype(np.int32)
    return (store(to_float64(rounded(one.mutate(case, oracle), numerics, case.dtype)), case.dtype),)
