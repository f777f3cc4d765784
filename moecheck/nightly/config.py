"""nightly.toml: which commands a night runs, with which options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from moecheck.errors import UsageError, check_known
from moecheck.nightly.toml_text import read_toml

MOST = 1 << 63
PARTS = ("kernels", "mutants", "e2e", "bench")
TOP = ("name", "seed", "out", "history", "xfail", "drift", *PARTS)
OWN = ("label", "needs", "required", "time_limit")  # keys of a part that are no options of its command
NOT_ASKED = ("out", "resume", "help")  # options that the night gives by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One command of a night.

    arguments: as on a command line, without --out and the night's seed. seeded: whether it takes the night's seed.
    needs: `cuda`, or packages, without which it is skipped. required: whether a skip leaves the night undecided.
    time_limit: minutes. model: of e2e.
    """

    label: str
    command: str
    arguments: tuple[str, ...]
    seeded: bool
    needs: tuple[str, ...] = ()
    required: bool = False
    time_limit: float | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole nightly.toml. seed: None for the date's. The paths are absolute. text: of the file."""

    name: str
    seed: int | None
    out: Path
    history: Path
    xfail: Path | None
    drift: bool
    parts: tuple[Part, ...]
    text: str


def read_config(path: Path, commands: Mapping[str, click.Command], *, base: Path | None = None) -> Config:
    """The configuration in a file; its relative paths begin at `base`, by default the file's folder.

    commands: those of PARTS, which know their options. Raises UsageError for whatever is wrong with it.
    """
    text, data = read_toml(path)
    try:
        return _config(data, text, path, (base or path.parent).absolute(), commands)
    except click.UsageError as error:
        raise UsageError(f"{path}: {error.format_message()}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _config(data: dict[str, Any], text: str, path: Path, base: Path, commands: Mapping[str, click.Command]) -> Config:
    for key in data:
        check_known("key", key, TOP)
    parts = tuple(part for name in PARTS for part in _parts(name, data.get(name, []), commands[name]))
    if not parts:
        raise UsageError(f"There is nothing to run: give [kernels], or another of {', '.join(PARTS)}.")
    labels = [part.label for part in parts]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"Two parts are called {label!r}; give each a label of its own.")
    xfail = _text(data, "xfail", "")
    return Config(
        name=_text(data, "name", path.stem),
        seed=_seed(data.get("seed", "date")),
        out=base / _text(data, "out", "reports"),
        history=base / _text(data, "history", "reports/history.sqlite"),
        xfail=base / xfail if xfail else None,
        drift=_flag(data, "drift", True),
        parts=parts,
        text=text,
    )


def _parts(name: str, value: Any, command: click.Command) -> list[Part]:
    tables = value if isinstance(value, list) else [value]
    if not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{name} must be a table, [{name}] or [[{name}]].")
    return [_part(name, table, command) for table in tables]


def _part(name: str, table: dict[str, Any], command: click.Command) -> Part:
    options = {one.name: one for one in command.params if isinstance(one, click.Option) and one.name not in NOT_ASKED}
    arguments: list[str] = []
    for key, value in table.items():
        if key not in OWN:
            check_known(f"key of [{name}]", key, [*OWN, *(one for one in options if one)])
            arguments += _words(name, options[key], value)
    command.make_context(name, list(arguments))  # its own checks of its options
    needs = table.get("needs", [])
    needs = [needs] if isinstance(needs, str) else needs
    if not (isinstance(needs, list) and all(isinstance(one, str) for one in needs)):
        raise UsageError(f'needs of [{name}] must be a text or a list of texts, "cuda" for example.')
    limit = table.get("time_limit")
    if limit is not None and not (
        isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit < math.inf
    ):
        raise UsageError(f"time_limit of [{name}] must be a number of minutes above 0, not {limit!r}.")
    label = _text(table, "label", name)
    if not label or not all(letter.isalnum() or letter in "-_." for letter in label) or label.startswith("."):
        raise UsageError(f"label {label!r} of [{name}] names a folder: use letters, digits, - and _.")
    return Part(
        label=label,
        command=name,
        arguments=tuple(arguments),
        seeded="seed" in options and "seed" not in table,
        needs=tuple(needs),
        required=_flag(table, "required", False),
        time_limit=limit,
        model=str(table["model"]) if name == "e2e" and "model" in table else None,
    )


def _words(name: str, option: click.Option, value: Any) -> list[str]:
    """A key and its value as on the command line."""
    flag = f"--{str(option.name).replace('_', '-')}"
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{option.name} of [{name}] must be true or false, not {value!r}.")
        return [flag] if value else []
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not option.multiple:
        raise UsageError(f"{option.name} of [{name}] must be one value, not a list.")
    for one in values:
        if not isinstance(one, str | int | float) or isinstance(one, bool) or "\0" in str(one):
            raise UsageError(f"{option.name} of [{name}] must be a text or a number, not {one!r}.")
    return [word for one in values for word in (flag, str(one))]


def _seed(value: Any) -> int | None:
    if value == "date":
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST:
        raise UsageError(f'seed must be "date" or an integer from 0 to 2^63 - 1, not {value!r}.')
    return value


def _text(data: dict[str, Any], key: str, usual: str) -> str:
    value = data.get(key, usual)
    if not isinstance(value, str) or "\0" in value:
        raise UsageError(f"{key} must be a text, not {value!r}.")
    return value


def _flag(data: dict[str, Any], key: str, usual: bool) -> bool:
    value = data.get(key, usual)
    if not isinstance(value, bool):
        raise UsageError(f"{key} must be true or false, not {value!r}.")
    return value
