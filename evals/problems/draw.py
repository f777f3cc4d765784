"""Deterministic choices: the same seed gives the same problems on every machine and version of Python."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Choices from one seed.

    Only `Random.random` is used: it is the one method whose sequence Python promises to keep for a seed.
    """

    __slots__ = ("_random",)

    def __init__(self, seed: int) -> None:
        self._random = Random(seed).random

    def below(self, limit: int) -> int:
        """An integer of 0 .. limit - 1."""
        return int(self._random() * limit)

    def between(self, low: int, high: int) -> int:
        """An integer of low .. high, both included."""
        return low + int(self._random() * (high - low + 1))

    def chance(self, share: float) -> bool:
        """True with the probability `share`."""
        return self._random() < share

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[int(self._random() * len(choices))]

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        """`count` different ones of the choices, in random order."""
        left = list(choices)
        return [left.pop(int(self._random() * len(left))) for _ in range(count)]
