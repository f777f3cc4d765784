"""Pallas TPU kernels where there is no TPU: in jax's TPU interpreter, on schedules of its DMAs that a TPU may have too.

The interpreter keeps vector clocks and so sees two accesses that nothing orders, fills fresh memory with NaN, and runs
each DMA either as soon as it is started or as late as it may, the newest first. A kernel that waits for all that it
needs gives the same bits on every schedule.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from moecheck.schedules import USUAL, Schedule

BACKEND = "pallas_tpu"
STATE = "jax._src.pallas.mosaic.interpret.interpret_pallas_call"
CLOCKS = 64  # with the default size of its vector clocks the detector misses races (jax 0.10 and 0.11)
_FRAME = re.compile(r"(read|write) of (.+)\[.*?\] from .*?([^\s/]+\.py:\d+)")


@dataclass(slots=True, kw_only=True)
class Watch:
    """What the interpreter saw: None, or where the first race is, in words."""

    race: str | None = field(default=None)


def interprets(backend: str) -> bool:
    """Whether a kernel of this backend runs in the interpreter here."""
    if backend != BACKEND:
        return False
    import jax

    return bool(jax.default_backend() != "tpu")


@contextlib.contextmanager
def interpreted(backend: str, schedule: Schedule = USUAL) -> Iterator[Watch]:
    """Within it, Pallas TPU kernels run in the interpreter; what it saw is known afterwards. Else nothing happens.

    The interpreter's memory is thrown away at both ends: after an exception it is of no use.
    """
    watch = Watch()
    if not interprets(backend):
        yield watch
        return
    from jax.experimental.pallas import tpu as pltpu

    params = pltpu.InterpretParams(
        dma_execution_mode=schedule.dma,
        detect_races=schedule.watched,
        uninitialized_memory="nan",
        vector_clock_size=CLOCKS,
    )
    printed = _Tee(sys.stdout)
    reset: Any = pltpu.reset_tpu_interpret_mode_state
    reset()
    try:
        with pltpu.force_tpu_interpret_mode(params), contextlib.redirect_stdout(printed):
            yield watch
        found: Any = import_module(STATE).races
        if schedule.watched and found is not None and found.races_found:
            watch.race = _where(printed.kept.getvalue())
    finally:
        reset()


class _Tee(io.TextIOBase):
    """Writes to another stream, and keeps the text: the detector prints what it finds."""

    def __init__(self, stream: Any) -> None:
        self.kept = io.StringIO()
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text)
        return self.kept.write(text)

    def flush(self) -> None:
        self._stream.flush()


def _where(text: str) -> str:
    """`a write at kernel.py:12 and a read at kernel.py:30`, as far as the detector's words tell."""
    places = [f"a {what} at {place}" for what, _, place in _FRAME.findall(text)[:2]]
    return " and ".join(places) or "two accesses to the same memory"
