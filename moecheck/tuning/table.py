"""Files of measured configurations: read with every mistake in them told in one sentence, and written.

A file is {"schema": 2, "kernel": NAME, "layers": [...]}, a layer {"device", "experts", "intermediate", "hidden",
"top_k", "weights", "tokens": {"16": {number: value, ...}, ...}}: the configurations by the number of tokens of a call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from moecheck.errors import UsageError

from .layer import Configuration, Layer

SCHEMA = 2
Problem = Callable[[Configuration, Layer], str | None]
Layers = dict[Layer, dict[int, Configuration]]
_LAYER = {f.name: str if f.name in ("device", "weights") else int for f in fields(Layer)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a file holds: the configurations of one kernel by layer, then by number of tokens."""

    kernel: str
    layers: Layers


def load(path: Path, values: Mapping[str, tuple[int, ...]] | None = None, problem: Problem | None = None) -> Table:
    """The file's configurations; UsageError, in one sentence, for what cannot be read or cannot work.

    values, problem: of the kernel's Tuning; without them any numbers are taken.
    """
    table = peek(path)
    try:
        for layer, rows in table.layers.items():
            for tokens, found in rows.items():
                reason = wrong(found, layer, values, problem)
                if reason is not None:
                    raise ValueError(f"{layer.words()}: {tokens} tokens: {reason}")
    except ValueError as error:
        raise UsageError(f"The configurations {path} cannot be used: {error}.") from error
    return table


def peek(path: Path) -> Table:
    """As `load`, whatever the numbers are: which kernel's they are is known from the file alone."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        return _table(data)
    except OSError as error:
        raise UsageError(f"Cannot read the configurations {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"The configurations {path} are not JSON: {error}.") from error
    except ValueError as error:
        raise UsageError(f"The configurations {path} cannot be used: {error}.") from error


def write(path: Path, table: Table) -> None:
    """A line for each number of tokens; the file is complete or as it was."""
    layers = []
    for layer, rows in table.layers.items():
        head = json.dumps(asdict(layer))[:-1]
        lines = ",\n".join(f'  "{tokens}": {json.dumps(dict(rows[tokens]))}' for tokens in sorted(rows))
        layers.append(f'{head}, "tokens": {{\n{lines}}}}}')
    text = f'{{"schema": {SCHEMA}, "kernel": {json.dumps(table.kernel)}, "layers": [\n' + ",\n".join(layers) + "\n]}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"Cannot write the configurations {path}: {error.strerror}.") from error


def wrong(
    found: Configuration, layer: Layer, values: Mapping[str, tuple[int, ...]] | None, problem: Problem | None
) -> str | None:
    """Why a configuration cannot be used, or None."""
    if values is not None:
        try:
            _check_keys(found, set(values), "the configuration")
        except ValueError as error:
            return str(error)
        for name, allowed in values.items():
            if found[name] not in allowed:
                return f"{name} = {found[name]} is none of {', '.join(map(str, allowed))}"
    return None if problem is None else problem(found, layer)


def _table(data: Any) -> Table:
    _check_keys(data, {"schema", "kernel", "layers"}, "the file")
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']!r} is not {SCHEMA}")
    _check_type(data["kernel"], str, "kernel")
    _check_type(data["layers"], list, "layers")
    layers: Layers = {}
    for number, entry in enumerate(data["layers"]):
        layer = _layer(entry, f"layer {number}")
        if layer in layers:
            raise ValueError(f"layer {number} repeats {layer.words()}")
        _check_type(entry["tokens"], dict, f"layer {number}: tokens")
        layers[layer] = {
            _tokens(key, f"layer {number}"): _configuration(found, f"layer {number}: {key} tokens")
            for key, found in entry["tokens"].items()
        }
    return Table(kernel=data["kernel"], layers=layers)


def _layer(entry: Any, where: str) -> Layer:
    _check_keys(entry, {*_LAYER, "tokens"}, where)
    for name, kind in _LAYER.items():
        _check_type(entry[name], kind, f"{where}: {name}")
        if kind is int and entry[name] < 1:
            raise ValueError(f"{where}: {name} = {entry[name]} is not positive")
    return Layer(**{name: entry[name] for name in _LAYER})


def _tokens(key: str, where: str) -> int:
    if not (key.isascii() and key.isdigit() and str(int(key)) == key and key != "0"):
        raise ValueError(f"{where}: {key!r} is no number of tokens")
    return int(key)


def _configuration(found: Any, where: str) -> Configuration:
    _check_type(found, dict, where)
    for name, value in found.items():
        _check_type(value, int, f"{where}: {name}")
    return dict(found)


def _check_keys(data: Any, names: set[str], where: str) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object, not {type(data).__name__}")
    if data.keys() != names:
        name = sorted(data.keys() ^ names)[0]
        raise ValueError(f"{where} {'lacks' if name in names else 'has the unknown'} {name!r}")


def _check_type(value: Any, kind: type, where: str) -> None:
    if type(value) is not kind:
        raise ValueError(f"{where} = {value!r} is not of type {kind.__name__}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found
