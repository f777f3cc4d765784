"""Times one kernel on one case: cold caches, rotating inputs, the median of many calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moecheck.runner.arrays import JAX_BACKENDS, TORCH_BACKENDS, device_of
from moecheck.runner.cuda_graph import CapturedCall, NotCapturable

Method = Literal["graph", "events", "host"]
FLUSHED = {"cuda": 1 << 28, "cpu": 1 << 25}  # bytes written between calls, more than the caches hold
FEWEST, MOST = 11, 201  # calls that are timed
SETS = 3  # of inputs, in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one call. method: replays of a `graph` or plain calls between `events` of the device, or the `host`'s
    clock. median, low, high: quartiles. least: the fastest. calls: how many were timed. note: why there is no graph.
    """

    method: Method
    median: float
    low: float
    high: float
    least: float
    calls: int
    note: str = ""

    @classmethod
    def of(cls, method: Method, seconds: Sequence[float], note: str = "") -> Timing:
        low, median, high = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
        return cls(method=method, median=median, low=low, high=high, least=min(seconds), calls=len(seconds), note=note)


def time_call(function: Callable[..., Any], sets: Sequence[dict[str, Any]], backend: str, *, seconds: float) -> Timing:
    """The time of a kernel on several sets of arguments, in turn, for about so many seconds.

    sets: arguments by name; arrays that are the same object in all of them (weights) stay where they are, the values
    of the others are copied into the first set's arrays before each call, outside of what is timed.
    """
    if backend in TORCH_BACKENDS and device_of(backend) == "cuda":
        return _on_cuda(function, sets, seconds=seconds)
    return _on_host(function, sets, backend, seconds=seconds)


def _on_cuda(function: Callable[..., Any], sets: Sequence[dict[str, Any]], *, seconds: float) -> Timing:
    import torch

    arguments = dict(sets[0])
    changing = [n for n, v in arguments.items() if isinstance(v, torch.Tensor) and sets[-1][n] is not v]
    arguments |= {name: arguments[name].clone() for name in changing}
    method: Method = "graph"
    note = ""
    try:
        call: Callable[[], Any] = CapturedCall(function, arguments).replay
    except NotCapturable as error:
        method, note = "events", str(error)

        def call() -> Any:
            return function(**arguments)

    flush = torch.empty(FLUSHED["cuda"], dtype=torch.uint8, device="cuda")

    def once(number: int) -> tuple[Any, Any]:
        for name in changing:
            arguments[name].copy_(sets[number % len(sets)][name])
        flush.zero_()
        event: Any = torch.cuda.Event
        before, after = event(enable_timing=True), event(enable_timing=True)
        before.record()
        call()
        after.record()
        return before, after

    measured: list[float] = []
    start = time.perf_counter()
    for batch in _batches():
        events = [once(number) for number in batch]
        torch.cuda.synchronize()
        measured += [before.elapsed_time(after) / 1e3 for before, after in events]
        if len(measured) >= FEWEST and time.perf_counter() - start > seconds:
            break
    return Timing.of(method, measured[1:], note)


def _on_host(function: Callable[..., Any], sets: Sequence[dict[str, Any]], backend: str, *, seconds: float) -> Timing:
    def wait(result: Any) -> Any:
        if backend in JAX_BACKENDS:
            import jax

            jax.block_until_ready(result)  # type: ignore[no-untyped-call]  # jax leaves it untyped
        return result

    flush = np.zeros(FLUSHED["cpu"], np.uint8)
    wait(function(**sets[0]))
    measured: list[float] = []
    begin = time.perf_counter()
    for number in range(MOST):
        flush += 1
        start = time.perf_counter()
        wait(function(**sets[number % len(sets)]))
        measured.append(time.perf_counter() - start)
        if len(measured) >= FEWEST and time.perf_counter() - begin > seconds:
            break
    return Timing.of("host", measured)


def _batches() -> Iterator[range]:
    """The numbers of MOST + 1 calls in short runs, so that slow kernels can be stopped between them; one to warm up."""
    yield range(1)
    for start in range(1, MOST + 1, 10):
        yield range(start, min(start + 10, MOST + 1))
