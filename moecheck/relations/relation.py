"""What a relation is, and the registry that finds them all by walking this package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from moecheck.cases import Case
from moecheck.formats import AnyArray, Float64
from moecheck.kernel import Declaration
from moecheck.schedules import USUAL, Schedule

Inputs = dict[str, Any]
Outputs = tuple[AnyArray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a relation's premises speak of: a kernel and the case that it is tried on."""

    declaration: Declaration
    case: Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One further call. case: the record with the sizes that `inputs` (NumPy arrays and integers) have.

    in_place: the arrays are written into those of the call before, of equal shapes, as where a graph is replayed. These
    must be the trial's own, not the case's, wherever the values differ. schedule: of the DMAs of a kernel that is
    interpreted.
    """

    case: Case
    inputs: Inputs
    in_place: bool = False
    schedule: Schedule = USUAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """A relation's calls as its comparison sees them, all decoded; the first is the case's own, unchanged.

    raw: of each call, the arrays as the kernel returned them.
    outputs: of each call, [rows, columns] float64 (`rows_of` says which rows these are).
    allowed: (number of a call) -> how far an honest kernel may be from the mathematics there, as `outputs`. It is
    computed when asked for.
    """

    raw: tuple[Outputs, ...]
    outputs: tuple[Float64, ...]
    allowed: Callable[[int], Float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two arrays that a relation says are equal, and how far they may differ where they are not so bitwise.

    wanted, got: [rows, columns] float64. allowed: a function giving the largest honest |got - wanted|, same shape.
    """

    wanted: Float64
    got: Float64
    allowed: Callable[[], Float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A relation on one case: the further calls, and what must be equal among their outputs and the case's own."""

    calls: tuple[Call, ...]
    pairs: Callable[[Calls], tuple[Pair, ...]]


Premise = Callable[[Subject], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One metamorphic relation.

    says: the law as a sentence. ops: where it holds. premises: each gives the reason why it does not hold for a
    subject, or None. exact: whether bits must be equal, as far as the subject's declarations reach; else each side
    may have its own roundings. trial: (case, inputs) -> calls and comparison; both the worker and the judge call it,
    so it is a pure function. keeps_shapes: whether all calls have the case's shapes. optional: whether a kernel may
    refuse the calls with any exception. capability: what it observes: a flag of Declaration that it verifies, or a
    property that is only reported. bitwise: whether that is observed only where no bit differs.
    """

    name: str
    says: str
    ops: tuple[str, ...]
    premises: tuple[Premise, ...]
    exact: Callable[[Subject], bool]
    trial: Callable[[Case, Inputs], Trial]
    keeps_shapes: bool
    optional: bool
    capability: str | None
    bitwise: bool

    def missing(self, subject: Subject) -> str | None:
        """Why it cannot be tried on the subject, or None."""
        if subject.case.op not in self.ops:
            return f"says nothing of {subject.case.op}"
        return next((reason for premise in self.premises if (reason := premise(subject)) is not None), None)


_RELATIONS: dict[str, Relation] = {}


def relation(
    says: str,
    *,
    ops: tuple[str, ...],
    premises: tuple[Premise, ...] = (),
    exact: Callable[[Subject], bool] | None = None,
    keeps_shapes: bool = False,
    optional: bool = False,
    capability: str | None = None,
    bitwise: bool = False,
) -> Callable[[Callable[[Case, Inputs], Trial]], Callable[[Case, Inputs], Trial]]:
    """Register the decorated trial as the relation of its name; the function itself is returned unchanged."""

    def register(trial: Callable[[Case, Inputs], Trial]) -> Callable[[Case, Inputs], Trial]:
        name = trial.__name__
        assert name not in _RELATIONS, f"two relations are named {name}"
        _RELATIONS[name] = Relation(
            name=name,
            says=says,
            ops=ops,
            premises=premises,
            exact=exact or _never,
            trial=trial,
            keeps_shapes=keeps_shapes,
            optional=optional,
            capability=capability,
            bitwise=bitwise,
        )
        return trial

    return register


@cache
def relations() -> dict[str, Relation]:
    """Name -> relation, in the order of the modules' names."""
    package = importlib.import_module("moecheck.relations")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"moecheck.relations.{info.name}")
    return dict(_RELATIONS)


def _never(_: Subject) -> bool:
    return False
