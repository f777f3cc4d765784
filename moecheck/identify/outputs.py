"""A case's output under every contract that is asked for, and how much of a kernel's output each one reproduces."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moecheck.bounds import FLUSHED
from moecheck.cases import Case
from moecheck.formats import FORMATS, AnyArray, Float64, store, to_float64
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle

from .candidates import ROUTER, resolved
from .routing import UNSEEN, RoutingReplay, routing_sigma
from .stages import EXACT, Replay, compared_columns, replay_of

Bools = npt.NDArray[np.bool_]
MOST_ELEMENTS = 1 << 15  # compared of one case: more would only make the search slow and large
WORST = 1000.0  # doublings of the residual of an output that is not finite
# Sums in fp32 differ in every last bit, so an fp32 output agrees where fp32 arithmetic explains the difference.
FP32_SIGMAS = 4.0


class CaseOutputs:
    """Outputs of one case in a form that compares fast; safe to share between threads.

    bf16 and fp16 outputs compare as bits, -0 counting as 0. fp32 outputs agree within FP32_SIGMAS standard deviations
    of fp32 arithmetic alone, a thousandth of what a store in bf16 or fp16 does; so do routing weights, which come as
    fp32 whatever they were rounded to, and of which those that are UNSEEN do not count.
    """

    def __init__(self, case: Case, oracle: Oracle) -> None:
        self.case = case
        self.exact = case.dtype != "fp32" and case.op != ROUTER
        self._oracle, self._lock = oracle, threading.RLock()
        self._replays: dict[bool, Replay] = {}
        self._numbers: dict[Numerics, int] = {}
        self._known: dict[bytes, int] = {}
        self._rows: list[AnyArray] = []
        self._expected: dict[int, float] = {}
        self._allowed: Float64 = np.zeros(0)
        if not self.exact:
            sigma = routing_sigma(case, oracle) if case.op == ROUTER else oracle.values(case, EXACT).sigma
            self._allowed = FP32_SIGMAS * _some(sigma[:, compared_columns(case)])

    def observed(self, out: AnyArray) -> AnyArray:
        """The compared elements of a kernel's whole output."""
        return self._comparable(out[:, compared_columns(self.case)], store)

    def _comparable(self, out: AnyArray, stored_as: Callable[[Float64, str], AnyArray]) -> AnyArray:
        """Elements of stored values, or of float64 values that the case's format has: bits, or float64 for fp32."""
        values = to_float64(_some(out)) + 0.0  # -0 becomes 0
        if not self.exact:
            return values
        stored = stored_as(values, self.case.dtype)
        return stored.view(f"u{stored.itemsize}")

    def _replayed(self, meaning: Numerics, *, noisy: bool) -> AnyArray:
        """The compared elements of the output under a contract whose `input` is resolved."""
        rounded = meaning.out == self.case.dtype
        return self._comparable(self._replay(noisy=noisy).value(meaning), _encoded if rounded else store)

    def number(self, numerics: Numerics) -> int:
        """The number of the output under a contract; contracts that give the same bits have the same number."""
        with self._lock:
            if numerics not in self._numbers:
                meaning = resolved(numerics, self.case)
                if meaning not in self._numbers:
                    self._numbers[meaning] = self._number_of(self._replayed(meaning, noisy=False))
                self._numbers[numerics] = self._numbers[meaning]
            return self._numbers[numerics]

    def agreeing(self, number: int, out: AnyArray) -> Bools:
        """[elements]: which elements of an observed `out` are those of the output of that number."""
        row = self._rows[number]
        if self.exact:
            return np.asarray(row == out)
        with np.errstate(invalid="ignore"):
            close: Bools = np.abs(row - out) <= self._allowed
            compared: Bools = close[out != UNSEEN]
            return compared

    def residual(self, number: int, out: AnyArray) -> float:
        """Root mean square of out - reference in units of what fp32 arithmetic explains; for fp32 only."""
        allowed = np.maximum(self._allowed, FLUSHED)
        with np.errstate(invalid="ignore", over="ignore"):
            apart = ((self._rows[number] - out) / allowed)[out != UNSEEN]
            return float(np.sqrt(np.mean(np.square(apart))))

    def expected(self, numerics: Numerics) -> float:
        """The agreement of a simulated kernel that has this contract and accumulates in fp32."""
        number = self.number(numerics)
        with self._lock:
            if number not in self._expected:
                simulated = self._replayed(resolved(numerics, self.case), noisy=True)
                self._expected[number] = share(self.agreeing(number, simulated))
            return self._expected[number]

    def _replay(self, *, noisy: bool) -> Replay:
        if noisy not in self._replays:
            self._replays[noisy] = self._new_replay(noisy=noisy)
        return self._replays[noisy]

    def _new_replay(self, *, noisy: bool) -> Replay:
        if self.case.op == ROUTER:
            return RoutingReplay(self.case, self._oracle, noisy=noisy)
        return replay_of(self.case, self._oracle, noisy=noisy)

    def _number_of(self, output: AnyArray) -> int:
        number = self._known.setdefault(output.tobytes(), len(self._rows))
        if number == len(self._rows):
            self._rows.append(output)
        return number


class Scores:
    """How one kernel's output on a case compares with every output that is asked for."""

    def __init__(self, outputs: CaseOutputs, out: AnyArray) -> None:
        self.outputs, self._out = outputs, outputs.observed(out)
        self.size = self._out.size
        self._shares: dict[int, float] = {}
        self._merits: dict[int, float] = {}

    def agreement(self, number: int) -> float:
        """Share of elements that the output of that number reproduces."""
        if number not in self._shares:
            self._shares[number] = share(self.outputs.agreeing(number, self._out))
        return self._shares[number]

    def merit(self, number: int) -> float:
        """Agreement; for fp32, where it is 0 until all stores are right, less a little for each doubled residual."""
        if self.outputs.exact:
            return self.agreement(number)
        if number not in self._merits:
            residual = self.outputs.residual(number, self._out)
            lacking = float(np.log2(1.0 + residual)) if np.isfinite(residual) else WORST
            self._merits[number] = self.agreement(number) - 0.05 * lacking
        return self._merits[number]

    def only(self, first: int, second: int) -> tuple[float, float]:
        """Share of elements that only the first, and only the second, of two outputs reproduces."""
        a, b = self.outputs.agreeing(first, self._out), self.outputs.agreeing(second, self._out)
        return share(a & ~b), share(b & ~a)


def share(which: Bools) -> float:
    """Share of the elements that are true."""
    return float(np.count_nonzero(which) / which.size) if which.size else float("nan")


@np.errstate(invalid="ignore", over="ignore")
def _encoded(values: Float64, name: str) -> AnyArray:
    """As `store`, of values that the format has."""
    return values.astype(FORMATS[name].storage)


def _some(values: AnyArray) -> AnyArray:
    """The elements of an output that are compared: all of them, or every so many-th of a large one."""
    flat = values.ravel()
    return flat[:: max(1, flat.size // MOST_ELEMENTS)]
