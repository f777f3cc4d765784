"""Finds the smallest case that still fails: fewest tokens, experts and columns."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample

from moecheck.cases import Case
from moecheck.strategies import smaller_than

MOST_TRIES = 40


def shrink(case: Case, fails: Callable[[Case], bool], *, seconds: float) -> Case:
    """The smallest case like `case` for which `fails` holds, as far as the given time reaches; at worst `case` itself.

    Hypothesis searches among cases of the same op, dtype and spec with smaller sizes. fails: runs the kernel.
    """
    best, tried = case, {case: True}
    deadline = time.monotonic() + seconds

    def condition(candidate: Case) -> bool:
        nonlocal best
        if candidate not in tried:
            if time.monotonic() > deadline:
                return False
            tried[candidate] = fails(candidate)
            if tried[candidate] and size(candidate) < size(best):
                best = candidate
        return tried[candidate]

    quiet = settings(
        max_examples=MOST_TRIES,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    with contextlib.suppress(NoSuchExample):
        find(smaller_than(case), condition, settings=quiet, random=random.Random(0))
    return best


def size(case: Case) -> tuple[int, ...]:
    """What is to become small: the inputs' numbers together, then each size in the order of a reader's interest."""
    tokens, width = case.num_tokens, case.hidden_size + 2 * case.intermediate_size
    return (tokens * width + case.elements, tokens, case.num_experts, case.hidden_size, case.intermediate_size)
