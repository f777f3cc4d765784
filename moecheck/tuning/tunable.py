"""The numbers of a kernel that are chosen by measuring, and which of them a call uses."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from moecheck.errors import Unsupported, UsageError

from .layer import Configuration, Layer
from .table import Problem, Table, load, peek, wrong

VARIABLE = "MOECHECK_TUNED"
NEAR = 16  # times as many tokens, or as few, as a configuration was measured with
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tuning:
    """What a kernel leaves to measurements; given to `@moecheck.kernel(tuning=...)`.

    kernel: its name. values: for each number the values that it may have, in the order in which a search tries them.
    start: the configuration for a layer and a number of tokens that was not measured; a search begins there. problem:
    why a configuration cannot work on a layer, None where it can. fallback: what the kernel does without a measured
    configuration, as in `uses two launches instead`. packaged: the file that comes with the kernel.
    """

    kernel: str
    values: Mapping[str, tuple[int, ...]]
    start: Callable[[Layer, int], Configuration]
    fallback: str
    problem: Problem | None = None
    packaged: Path | None = None

    def configuration(self, layer: Layer, tokens: int) -> Configuration | None:
        """The configuration that was measured for the nearest number of tokens, or None.

        It is looked for in the files that MOECHECK_TUNED names (with the separator of PATH between them) and that are
        this kernel's, else in the packaged one. Where there is none to be used a warning says why, once, and what the
        kernel does instead; that a packaged file lacks a layer is only logged.
        """
        pin = _pin.get()
        if pin is not None:
            return pin.given_to(self, layer, tokens)
        return _configuration(self, layer, tokens, os.environ.get(VARIABLE, ""))

    def check(self) -> None:
        """Read the files now: UsageError, in one sentence, for one that cannot be used."""
        for path in _named(os.environ.get(VARIABLE, "")):
            _read(self, path)


@dataclass(slots=True)
class Pin:
    """A configuration that calls use whatever the files say. None: the tuning's start. asked: by which layers."""

    configuration: Configuration | None
    asked: list[tuple[Layer, int, Configuration]] = field(default_factory=list)

    def given_to(self, tuning: Tuning, layer: Layer, tokens: int) -> Configuration:
        found = tuning.start(layer, tokens) if self.configuration is None else self.configuration
        reason = wrong(found, layer, tuning.values, tuning.problem)
        if reason is not None:
            raise Unsupported(f"the configuration cannot work: {reason}")
        self.asked.append((layer, tokens, found))
        return found


_pin: ContextVar[Pin | None] = ContextVar("pin", default=None)


def is_pinned() -> bool:
    """Whether a configuration is being tried."""
    return _pin.get() is not None


@contextmanager
def pinned(configuration: Configuration | None) -> Iterator[Pin]:
    """Within the block every tunable kernel uses this configuration; one that cannot work raises Unsupported."""
    pin = Pin(configuration)
    token = _pin.set(pin)
    try:
        yield pin
    finally:
        _pin.reset(token)


@cache
def _configuration(tuning: Tuning, layer: Layer, tokens: int, named: str) -> Configuration | None:
    said, read = [], False
    for path in _named(named):
        try:
            table = _read(tuning, path)
        except UsageError as error:
            said.append(str(error))
            continue
        if table is not None:
            found, read = _nearest(table, layer, tokens), True
            if not isinstance(found, str):
                return found
            said.append(f"The configurations {path} {found}")
    if not said and tuning.packaged is None:
        said.append(f"No file named by {VARIABLE} holds configurations of {tuning.kernel}.")
    if not said:
        return _packaged(tuning, layer, tokens)
    _warn_once(tuning.kernel, layer if read else None, f"{' '.join(said)} {tuning.kernel} {tuning.fallback}.")
    return None


def _packaged(tuning: Tuning, layer: Layer, tokens: int) -> Configuration | None:
    assert tuning.packaged is not None
    try:
        found = _nearest(load(tuning.packaged, tuning.values, tuning.problem), layer, tokens)
    except UsageError as error:
        _warn_once(tuning.kernel, None, f"{error} {tuning.kernel} {tuning.fallback}.")
        return None
    if isinstance(found, str):
        log.info("The configurations %s %s %s %s.", tuning.packaged.name, found, tuning.kernel, tuning.fallback)
        return None
    return found


def _nearest(table: Table, layer: Layer, tokens: int) -> Configuration | str:
    """The configuration, or what a sentence says of the file where it has none that is near."""
    rows = table.layers.get(layer)
    if not rows:
        others = "; ".join(other.words() for other in table.layers) or "no layer"
        return f"are for another shape ({others}), none for {layer.words()}."

    def distance(measured: int) -> float:
        return abs(math.log(measured / max(1, tokens)))

    nearest = min(rows, key=distance)
    if distance(nearest) > math.log(NEAR):
        listed = ", ".join(map(str, sorted(rows)))
        return f"have none near {tokens} tokens, only for {listed}."
    return rows[nearest]


def _read(tuning: Tuning, path: Path) -> Table | None:
    """The table of a file, or None where it is another kernel's."""
    table = peek(path)
    return load(path, tuning.values, tuning.problem) if table.kernel == tuning.kernel else None


def _named(variable: str) -> list[Path]:
    return [Path(part) for part in variable.split(os.pathsep) if part]


def _warn_once(kernel: str, layer: Layer | None, sentence: str) -> None:
    """Once for a kernel and a layer, or for a kernel whose files cannot be read."""
    if (kernel, layer) not in _warned:
        _warned.add((kernel, layer))
        warnings.warn(sentence, stacklevel=2)


def forget() -> None:
    """Read files anew and warn anew: for tests."""
    _configuration.cache_clear()
    _warned.clear()


_warned: set[tuple[str, Layer | None]] = set()
