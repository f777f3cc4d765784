"""The weights of a large layer as lazy stacks: each expert is drawn when it is read, and never all are held."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from .cases import Case
from .errors import CaseError
from .formats import Float64
from .weights import ExpertWeights

Draw = Callable[[int], Float64]


class DrawnExperts:
    """A stack [count, rows, columns] of float64 matrices; `stack[e]` hands out expert e and draws the next meanwhile.

    At most three experts exist at a time: the one in use, the next one, and one that a reader has not let go of.
    """

    def __init__(self, draw: Draw, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._draw = draw
        self._ahead: dict[int, Future[Float64]] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1)

    def __getitem__(self, expert: int, /) -> Float64:
        with self._lock:
            ready = self._ahead.pop(expert, None)
            self._ahead.clear()
            matrix = self._draw(expert) if ready is None else ready.result()
            if expert + 1 < self.shape[0]:
                self._ahead[expert + 1] = self._worker.submit(self._draw, expert + 1)
        return matrix


def drawn_experts(case: Case) -> tuple[DrawnExperts, DrawnExperts]:
    """w13 and w2 of a case (stratum `random`) as lazy float64 stacks with the values of `case.inputs()`.

    Raises CaseError for another stratum.
    """
    if case.stratum != "random":
        raise CaseError(f"Weights of stratum {case.stratum!r} are not drawn lazily; use `random`.")
    weights = ExpertWeights(case)
    rows = case.intermediate_size * (2 if case.spec.experts.gated else 1)
    return (
        DrawnExperts(weights.w13_float64, (weights.count, rows, weights.width)),
        DrawnExperts(weights.w2_float64, (weights.count, weights.width, case.intermediate_size)),
    )
