"""Several experts at a time: in a large layer, making their matrices is what a reference spends its time on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import numpy as np

T = TypeVar("T")
R = TypeVar("R")
_threads: ContextVar[ThreadPoolExecutor | None] = ContextVar("threads", default=None)


@contextmanager
def experts_at_a_time(count: int) -> Iterator[None]:
    """Within it, `each` works on so many items at a time. NumPy's own matrix products should then use one thread."""
    with ThreadPoolExecutor(count) as pool:
        token = _threads.set(pool)
        try:
            yield
        finally:
            _threads.reset(token)


def each(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The function's results in the order of the items; a function that calls `each` itself has one thread for it."""
    pool = _threads.get()
    if pool is None:
        return map(function, items)
    errors = np.geterr()  # which a new thread does not know

    def call(item: T) -> R:
        with np.errstate(**errors):
            return function(item)

    return pool.map(call, items)
