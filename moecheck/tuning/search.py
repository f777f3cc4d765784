"""The search for the fastest configuration: one number after the other, from a start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .layer import Configuration

BETTER = 0.99  # of the best time so far, what a configuration must take to replace it: less is noise


class Best(NamedTuple):
    """The fastest configuration and its seconds; seconds of the start, None where it could not be timed."""

    configuration: Configuration
    seconds: float
    start_seconds: float | None


def search(
    values: Mapping[str, tuple[int, ...]],
    start: Configuration,
    measure: Callable[[Configuration], float | None],
    *,
    tries: int,
) -> Best | None:
    """The best of at most `tries` configurations, None where none could be timed.

    measure: the seconds of a call, None for a configuration that has no time (it is wrong, or cannot work). Each number
    takes each of its values while the others are kept, until a round over all of them finds nothing faster.
    """
    seen: dict[tuple[tuple[str, int], ...], float | None] = {}

    def seconds_of(one: Configuration) -> float | None:
        key = tuple(sorted(one.items()))
        if key not in seen:
            seen[key] = measure(one) if len(seen) < tries else None
        return seen[key]

    best, least = start, seconds_of(start)
    first = least
    improved = True
    while improved and len(seen) < tries:
        improved = False
        for name, allowed in values.items():
            for value in allowed:
                candidate = {**best, name: value}
                seconds = seconds_of(candidate)
                if seconds is not None and (least is None or seconds < BETTER * least):
                    best, least, improved = candidate, seconds, True
    return None if least is None else Best(best, least, first)
