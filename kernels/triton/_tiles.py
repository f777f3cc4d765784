"""Which tiles the grouped GEMMs use: measured ones from tiles.json for known shapes, else a rule.

The file is {"schema": 1, "entries": [...]}, an entry one shape on one device, as tools/tune_triton.py writes it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from moecheck.errors import UsageError

PACKAGED = Path(__file__).with_name("tiles.json")
VARIABLE = "MOECHECK_TRITON_TILES"
ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
SHARED_MEMORY = 232448  # bytes that a block may have on compute capability 9.0 (CUDA C++ Programming Guide)
LARGEST = {"block_m": 256, "block_n": 256, "block_k": 512, "num_warps": 16}
LEAST = {"block_m": 16, "block_n": 16, "block_k": 16, "num_warps": 1}
VALUES_PER_THREAD = 256  # of the accumulator; a thread has 255 registers
RULE = "rows of a block by the mean rows of an expert, 16 to 128, and tiles that fill shared memory"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How one GEMM is cut: columns and terms of a tile, blocks that share columns, warps and pipeline stages."""

    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Rows of a block, and the tiles of both GEMMs. gate_up.block_n counts columns of h, each of a gate and an up."""

    block_m: int
    gate_up: Tiles
    down: Tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a configuration was measured for: weights [experts, 2 intermediate, hidden] in `dtype`, on `device`."""

    device: str
    experts: int
    intermediate: int
    hidden: int
    dtype: str


Table = dict[Shape, dict[int, Configuration]]  # by shape, then by number of (token, slot) pairs


def configuration(shape: Shape, pairs: int) -> Configuration:
    """The measured configuration of the nearest number of pairs, or the rule's where the shape was not measured.

    fp16 uses what was measured for bf16.
    """
    table = _table()
    if table is None:
        _warn_absent()
        table = {}
    stored = shape if shape.dtype != "fp16" else Shape(**{**_plain(shape), "dtype": "bf16"})
    measured = table.get(stored)
    if measured is None:
        _tell_unmeasured(shape)
        return by_rule(experts=shape.experts, itemsize=ITEMSIZE[shape.dtype], pairs=pairs)
    return measured[min(measured, key=lambda rows: abs(math.log(rows / max(1, pairs))))]


def by_rule(*, experts: int, itemsize: int, pairs: int) -> Configuration:
    """RULE in full: wide tiles where experts have many rows, more stages of smaller tiles where they have few."""
    mean = max(1, pairs // max(1, experts))
    if itemsize > 2:
        tiles = Tiles(block_n=32, block_k=32, group_m=8, num_warps=4, num_stages=2)
        return Configuration(block_m=min(64, _at_least_16(mean)), gate_up=tiles, down=tiles)
    block_m = min(128, _at_least_16(mean))
    if block_m <= 32:
        first = Tiles(block_n=32, block_k=128, group_m=4, num_warps=4, num_stages=4)
        second = Tiles(block_n=64, block_k=128, group_m=4, num_warps=4, num_stages=4)
    elif block_m == 64:
        first = Tiles(block_n=64, block_k=64, group_m=4, num_warps=4, num_stages=4)
        second = Tiles(block_n=128, block_k=64, group_m=4, num_warps=4, num_stages=4)
    else:
        first = Tiles(block_n=128, block_k=64, group_m=16, num_warps=8, num_stages=4)
        second = Tiles(block_n=256, block_k=64, group_m=16, num_warps=8, num_stages=4)
    return Configuration(block_m=block_m, gate_up=first, down=second)


def load(path: Path) -> Table:
    """The file's configurations; UsageError, in one sentence, for what cannot be read or cannot work."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the tiles {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"The tiles {path} are not JSON: {error}.") from error
    table: Table = {}
    try:
        _check_keys(data, {"schema", "entries"}, "the file")
        if data["schema"] != 1:
            raise ValueError(f"schema {data['schema']!r} is not 1")
        if not isinstance(data["entries"], list):
            raise ValueError(f"entries must be a list, not {type(data['entries']).__name__}")
        for number, entry in enumerate(data["entries"]):
            shape, pairs, found = _entry(entry, f"entry {number}")
            if pairs in table.setdefault(shape, {}):
                raise ValueError(f"entry {number} repeats {pairs} pairs of {shape}")
            table[shape][pairs] = found
    except ValueError as error:
        raise UsageError(f"The tiles {path} cannot be used: {error}.") from error
    return table


def check_file() -> None:
    """Read the file now, so that a wrong one is told before anything runs."""
    _table()


def as_entry(shape: Shape, pairs: int, found: Configuration) -> dict[str, Any]:
    """What `load` reads back."""
    return {**_plain(shape), "pairs": pairs, "block_m": found.block_m, "gate_up": _plain(found.gate_up),
            "down": _plain(found.down)}  # fmt: skip


def problem(found: Configuration, itemsize: int) -> str | None:
    """Why a configuration cannot work, or None."""
    for part, tiles, rows in (
        ("gate_up", found.gate_up, 2 * found.gate_up.block_n),
        ("down", found.down, found.down.block_n),
    ):
        sizes = {"block_m": found.block_m, **{name: getattr(tiles, name) for name in LEAST if name != "block_m"}}
        for name, size in sizes.items():
            if not LEAST[name] <= size <= LARGEST[name] or size & (size - 1):
                return f"{part}.{name} = {size} is no power of two from {LEAST[name]} to {LARGEST[name]}"
        if not 1 <= tiles.num_stages <= 8 or tiles.group_m < 1:
            return f"{part} needs 1 to 8 stages and groups of at least one block"
        memory = tiles.num_stages * (found.block_m + rows) * tiles.block_k * itemsize
        if memory > SHARED_MEMORY:
            return f"{part} needs {memory} bytes of shared memory, and a block has {SHARED_MEMORY}"
        if found.block_m * rows > VALUES_PER_THREAD * 32 * tiles.num_warps:
            return f"{part} gives a thread {found.block_m * rows // (32 * tiles.num_warps)} values to add up"
    return None


def _entry(entry: Any, where: str) -> tuple[Shape, int, Configuration]:
    names = {f.name: str if f.name in ("device", "dtype") else int for f in fields(Shape)}
    _check_keys(entry, {*names, "pairs", "block_m", "gate_up", "down"}, where)
    for name, kind in {**names, "pairs": int, "block_m": int}.items():
        _check_type(entry[name], kind, f"{where}: {name}")
    if entry["dtype"] not in ITEMSIZE:
        raise ValueError(f"{where}: dtype {entry['dtype']!r} is none of {', '.join(ITEMSIZE)}")
    for name in ("pairs", "experts", "intermediate", "hidden"):
        if entry[name] < 1:
            raise ValueError(f"{where}: {name} = {entry[name]} is not positive")
    parts = {}
    for part in ("gate_up", "down"):
        sizes = {f.name: int for f in fields(Tiles)}
        _check_keys(entry[part], set(sizes), f"{where}: {part}")
        for name in sizes:
            _check_type(entry[part][name], int, f"{where}: {part}.{name}")
        parts[part] = Tiles(**entry[part])
    found = Configuration(block_m=entry["block_m"], **parts)
    reason = problem(found, ITEMSIZE[entry["dtype"]])
    if reason is not None:
        raise ValueError(f"{where}: {reason}")
    return Shape(**{name: entry[name] for name in names}), entry["pairs"], found


def _check_keys(data: Any, names: set[str], where: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, not {type(data).__name__}")
    if data.keys() != names:
        wrong = sorted(data.keys() ^ names)
        raise ValueError(f"{where} {'lacks' if wrong[0] in names else 'has the unknown'} {wrong[0]!r}")


def _check_type(value: Any, kind: type, where: str) -> None:
    if type(value) is not kind:
        raise ValueError(f"{where} = {value!r} is not of type {kind.__name__}")


def _plain(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


def _at_least_16(rows: int) -> int:
    return max(16, 1 << (rows - 1).bit_length())


@cache
def _table() -> Table | None:
    """The file that MOECHECK_TRITON_TILES names, or the packaged one; None where that is absent."""
    named = os.environ.get(VARIABLE)
    if named:
        return load(Path(named))
    return load(PACKAGED) if PACKAGED.exists() else None


@cache
def _warn_absent() -> None:
    warnings.warn(f"{PACKAGED.name} is absent: the Triton GEMMs use untuned tiles ({RULE}).", stacklevel=3)


@cache
def _tell_unmeasured(shape: Shape) -> None:
    log.info("No tiles were measured for %s: %s.", shape, RULE)
