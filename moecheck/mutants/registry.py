"""The registry of mutants: a decorator adds one, and each module of this package is walked for them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np

from moecheck.cases import Case
from moecheck.errors import HarnessError
from moecheck.formats import AnyArray, store, to_float64
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle

from .call import Call, Mutation, Outputs, Prediction, Slots, call_of, predict, rounded, shaped, slots_of, value

AnyChange = TypeVar("AnyChange", bound=Callable[..., Mutation])
PACKAGE = "moecheck.mutants"
# What kernels return is not a sum: their mutants are outputs, or calls with other inputs.
STRUCTURES = frozenset({"align_block_size", "expert_counts", "permute", "problem_sizes", "shuffle_rows"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A known bug as one change of a reference's call.

    name: as in the list of known bugs. variant: which of several parameters. words: what is wrong, for people.
    sources: where it happened, OWNER/REPO#NUMBER. ops: whose outputs it changes. when: on which cases it has a meaning.
    fitted: it has numbers (a factor, a row, an expert) that diagnosis finds from the output itself. rough: where it
    rounds is known, and not every bit of what a kernel makes there. slight: it may stay within rounding's own size.
    under: of a bug in what a contract declares (its quantisers), on which contracts it has a meaning; its change is
    given the contract too. expected: the checks of which one should see it, as the report names them. equivalent: why
    no check can see it, one sentence; its outputs are then the right ones bit for bit, which the score verifies.
    """

    name: str
    words: str
    ops: frozenset[str]
    change: Callable[..., Mutation]
    when: Callable[[Case], bool]
    sources: tuple[str, ...] = ()
    variant: str = ""
    fitted: bool = False
    rough: bool = False
    slight: bool = False
    under: Callable[[Numerics], bool] | None = None
    expects: tuple[str, ...] = ()
    equivalent: str = ""

    @property
    def id(self) -> str:
        """Unique: the name and the variant."""
        return f"{self.name}/{self.variant}" if self.variant else self.name

    @property
    def family(self) -> str:
        """The class of bugs it belongs to: the module that defines it."""
        return self.change.__module__.rpartition(".")[2]

    @property
    def kind(self) -> str:
        """Its class in the score: routing, shared, activation, GEMM, quantisation or plumbing."""
        return KINDS[self.family]

    @property
    def expected(self) -> tuple[str, ...]:
        """The checks of which one should see it: those it names, else those that compare what it changes."""
        if self.expects:
            return self.expects
        if self.slight:
            return ("statistics",)
        found = ["values"] if self.ops - {"topk_routing", *STRUCTURES} else []
        found += ["routing", "weights"] if "topk_routing" in self.ops else []
        return (*found, "structure") if self.ops & STRUCTURES else tuple(found)

    def applies(self, case: Case, numerics: Numerics | None = None) -> bool:
        """Whether it has a meaning on this case; it may still be equal to the right output there.

        numerics: the kernel's contract; without one, a bug in what a contract declares has none.
        """
        if self.under is not None and (numerics is None or not self.under(numerics)):
            return False
        return case.op in self.ops and case.num_tokens > 0 and self.when(case)

    def mutate(self, case: Case, oracle: Oracle, numerics: Numerics | None = None) -> Mutation:
        """What it makes of the case's call, under a contract where it is a bug of that."""
        return self.of_call(call_of(case, oracle), numerics)

    def of_call(self, call: Call, numerics: Numerics | None = None) -> Mutation:
        """What it makes of a call."""
        return self.change(call) if self.under is None else self.change(call, numerics)


# Module of this package -> class of bugs.
KINDS = {
    "routing": "routing",
    "router": "routing",
    "special_routing": "routing",
    "shared": "shared",
    "layers": "shared",
    "activation": "activation",
    "gemm": "GEMM",
    "rounding": "GEMM",
    "quantisation": "quantisation",
    "quantised_weights": "quantisation",
    "static_scales": "quantisation",
    "plumbing": "plumbing",
    "placement": "plumbing",
    "ranks": "plumbing",
    "structure": "plumbing",
    "expert_rows": "plumbing",
}
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
    under: Callable[[Numerics], bool] | None = None,
    expects: tuple[str, ...] = (),
    equivalent: str = "",
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
            under=under,
            expects=expects,
            equivalent=equivalent,
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


def mutants_for(case: Case, numerics: Numerics | None = None) -> tuple[Mutant, ...]:
    """The mutants that have a meaning on this case; with a contract, those of its quantisers too."""
    return tuple(m for m in all_mutants() if not m.equivalent and m.applies(case, numerics))


def mutated_slots(one: Mutant, case: Case, oracle: Oracle) -> Slots:
    """What a router with this bug returns: weights [T, k'] float64 and ids (op topk_routing)."""
    mutation = one.mutate(case, oracle)
    if isinstance(mutation, Outputs):
        weights, ids = mutation.arrays
        return Slots(to_float64(weights), ids)
    assert isinstance(mutation, Call)
    return slots_of(mutation)


def mutated_value(one: Mutant, case: Case, oracle: Oracle) -> AnyArray:
    """The unrounded output [rows, columns] float64 of a kernel with this bug."""
    return value(one.mutate(case, oracle))


def mutated_prediction(one: Mutant, case: Case, oracle: Oracle, numerics: Numerics | None) -> Prediction:
    """The unrounded output of a kernel with this bug and the sigma of its errors under a contract."""
    return predict(one.mutate(case, oracle, numerics), numerics, oracle.values(case, numerics).sigma, case.dtype)


def mutated_outputs(one: Mutant, case: Case, oracle: Oracle, numerics: Numerics | None) -> tuple[AnyArray, ...]:
    """What a kernel with this bug and this contract returns: the op's outputs in their storage dtypes."""
    mutation = one.mutate(case, oracle, numerics)
    if case.op in STRUCTURES or isinstance(mutation, Outputs):
        return structures_of(mutation)
    if case.op == "topk_routing":
        assert isinstance(mutation, Call)
        slots = slots_of(mutation)
        with np.errstate(over="ignore", invalid="ignore"):
            return slots.weights.astype(np.float32), slots.ids.astype(np.int32)
    out = store(to_float64(rounded(mutation, numerics, case.dtype)), case.dtype)
    return (shaped(call_of(case, oracle), out),)


def structures_of(mutation: Mutation) -> tuple[AnyArray, ...]:
    """The outputs of an op that moves and counts rows, in their storage dtypes."""
    if isinstance(mutation, Outputs):
        return mutation.arrays
    assert isinstance(mutation, Call)
    return stored_structures(mutation.case, Oracle(load=lambda _: mutation.inputs).outputs(mutation.case))


def stored_structures(case: Case, outputs: tuple[Any, ...]) -> tuple[AnyArray, ...]:
    """What the reference of such an op returns, as a kernel stores it."""
    if case.op == "shuffle_rows":
        return (store(to_float64(outputs[0]), case.dtype),)
    if case.op == "permute":
        scale = np.zeros(0, np.float32) if outputs[1] is None else outputs[1].astype(np.float32)
        return store(to_float64(outputs[0]), case.dtype), scale, outputs[2], outputs[3]
    return outputs
