"""Tunes one kernel: every configuration is checked, and only one that passes is timed."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from moecheck.bench.entry import Entry
from moecheck.bench.limits import Limits
from moecheck.bench.run import KernelBench, Settings, Wanted, measured_limits
from moecheck.errors import UsageError
from moecheck.registry import Found
from moecheck.runner.judges import JudgePool
from moecheck.runner.pool import KernelPool, WorkerDied, WorkerTimeout

from .in_worker import Begun, begin
from .layer import Configuration, Layer
from .search import Best, search


@dataclass(slots=True, kw_only=True)
class Tuned:
    """What became of one case. best: None where no configuration could be timed. statuses: how many configurations
    were `timed`, `wrong`, `failed` or `skipped`. reasons: what was said of those that got no time.
    """

    layer: Layer
    tokens: int
    best: Best | None = None
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)


Told = Callable[[Configuration, Entry], None]


@contextmanager
def _process(kernel: Found, settings: Settings) -> Iterator[KernelBench]:
    limits: dict[str, Limits] = {kernel.device: measured_limits(kernel.device, settings)}
    with (
        tempfile.TemporaryDirectory(prefix="moecheck-inputs-") as store,
        JudgePool(1, store=store, threads=settings.threads) as judging,
        KernelPool(memory=settings.memory, threads=settings.threads, store=store) as pool,
    ):
        yield KernelBench(kernel=kernel, settings=settings, judging=judging, pool=pool, limits=limits, all_tokens=True)


def tune(kernel: Found, wanted: Sequence[Wanted], settings: Settings, *, tries: int, told: Told) -> Iterator[Tuned]:
    """The best configuration of each case, case by case. told: of each configuration that was tried.

    Raises UsageError where the kernel has nothing to tune, or cannot run a case at all.
    """
    with _process(kernel, settings) as bench:
        for one in wanted:
            yield _tuned(bench, one, tries, told)


def _tuned(bench: KernelBench, wanted: Wanted, tries: int, told: Told) -> Tuned:
    timeout = bench.settings.timeout + 2 * bench.kernel.import_seconds
    try:
        begun: Begun = bench.pool.wait(bench.pool.submit(begin, bench.kernel.target, wanted.case, timeout=timeout))
    except (WorkerTimeout, WorkerDied) as error:
        raise UsageError(f"{bench.kernel.declaration.name} loses its process on {wanted.case.id}: {error}") from error
    if begun.layer is None or begun.start is None or begun.values is None:
        raise UsageError(begun.problem)
    result = Tuned(layer=begun.layer, tokens=begun.tokens)

    def measure(configuration: Configuration) -> float | None:
        bench.pin, bench.lost = configuration, 0
        entry = bench.entry(wanted)
        told(configuration, entry)
        result.statuses[entry.status] += 1
        if entry.reason:
            result.reasons.append(entry.reason)
        return None if entry.timing is None else entry.timing.median

    result.best = search(begun.values, begun.start, measure, tries=tries)
    return result
