"""What a kernel's own process does for `moecheck tune`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from moecheck.cases import Case
from moecheck.runner.target import Target
from moecheck.runner.worker import loaded, run_case

from .layer import Configuration, Layer
from .tunable import pinned

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a kernel asked its tuning for on a case, where a search begins, and what each number may be.

    problem: why there is nothing to tune, instead of the rest.
    """

    layer: Layer | None = None
    tokens: int = 0
    start: Configuration | None = None
    values: dict[str, tuple[int, ...]] | None = None
    problem: str = ""


def call_pinned(configuration: Configuration, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """A call in this process with the configuration pinned."""
    with pinned(configuration):
        return function(*args, **kwargs)


def begin(target: Target, case: Case) -> Begun:
    """Call the kernel on a case by the start of its tuning."""
    function, declaration = loaded(target)
    tuning = getattr(function, "__moecheck_tuning__", None)
    if tuning is None:
        return Begun(problem=f"{declaration.name} declares no numbers to tune: give its @moecheck.kernel a `tuning`.")
    with pinned(None) as pin:
        outcome = run_case(target, case)
    if not pin.asked:
        reason = "it never asks its tuning for a configuration" if outcome.problem is None else outcome.problem[1]
        return Begun(problem=f"{declaration.name} cannot be tuned on {case.id}: {reason}")
    layer, tokens, start = pin.asked[0]
    return Begun(layer=layer, tokens=tokens, start=dict(start), values=dict(tuning.values))
