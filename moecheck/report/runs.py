"""Finished runs of any command as their folders hold them, found and read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from moecheck.bench.entry import Bench, Entry
from moecheck.bench.limits import Limits
from moecheck.bench.timing import Timing
from moecheck.bench.work import Work
from moecheck.errors import UsageError
from moecheck.report.e2e_record import E2eRecord
from moecheck.report.results import RunSummary
from moecheck.report.strict_json import number
from moecheck.scoring import result as scoring
from moecheck.scoring.result import Score

Content = RunSummary | E2eRecord | Score | Bench
Record = TypeVar("Record")
FILES = {"kernels": "summary.json", "e2e": "e2e.json", "mutants": "mutants.json", "bench": "bench.json"}
DEPTH = 3  # folders below the one that is given: reports/, a night, its parts, their runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. part: which command (kernels, e2e, mutants, bench). path: its folder. started: with a time zone.

    environment: environment.json, empty where there is none.
    """

    part: str
    path: Path
    started: datetime
    seconds: float
    git: str | None
    command: str
    environment: dict[str, Any]
    content: Content

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def machine(self) -> str:
        """The processor, and the accelerators that a run of `moecheck bench` measured; empty where it is not known."""
        limits = self.content.limits if isinstance(self.content, Bench) else {}
        devices = [one.device for device, one in limits.items() if device != "cpu"]
        return ", ".join([*([str(cpu)] if (cpu := self.environment.get("cpu")) else []), *devices])


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs in and below `folders`, oldest first, each once, and a sentence for each that cannot be read.

    Links such as `latest` are not followed below the given folders. Raises UsageError for a folder that does not exist.
    """
    runs: dict[Path, Run] = {}
    notes = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder; give one that `moecheck` wrote, or the one above.")
        for path, part in _candidates(folder.resolve(), DEPTH):
            try:
                runs.setdefault(path, read_run(path, part))
            except UsageError as error:
                notes.append(str(error))
    return sorted(runs.values(), key=lambda run: (run.started, run.name)), notes


def read_run(path: Path, part: str) -> Run:
    """The run of one folder; raises UsageError when its files cannot be read."""
    file = path / FILES[part]
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        content = _READERS[part](data)
        environment = _environment(path)
        return Run(
            part=part,
            path=path,
            started=_time(content.started),
            seconds=content.seconds,
            git=getattr(content, "git", None) or environment.get("git"),
            command=content.command,
            environment=environment,
            content=content,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UsageError(f"{file} cannot be read as a finished run of moecheck {part}: {_words(error)}.") from error


def _candidates(folder: Path, depth: int) -> Iterator[tuple[Path, str]]:
    """Folders that hold a finished run, in order of their names."""
    for part, name in FILES.items():
        if (folder / name).is_file():
            yield folder, part
    if depth:
        try:
            below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        except OSError as error:
            raise UsageError(f"Cannot read {folder}: {error.strerror}.") from error
        for path in below:
            yield from _candidates(path, depth - 1)


def _environment(path: Path) -> dict[str, Any]:
    try:
        data = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(data, dict):
        raise ValueError("environment.json is no object")
    return data


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _words(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__


def _score(data: Mapping[str, Any]) -> Score:
    parts = {
        "mutants": scoring.MutantScore,
        "alarms": scoring.Alarms,
        "limits": scoring.Limits,
        "coverage": scoring.Cell,
    }
    values: dict[str, Any] = {
        name: tuple(_record(kind, entry) for entry in data.get(name, ())) for name, kind in parts.items()
    }
    return _record(Score, {**data, **values})


def _bench(data: Mapping[str, Any]) -> Bench:
    limits = {name: _record(Limits, entry) for name, entry in data["limits"].items()}
    return _record(Bench, {**data, "limits": limits, "entries": tuple(_entry(entry) for entry in data["entries"])})


def _entry(data: Mapping[str, Any]) -> Entry:
    timing = None if data["timing"] is None else _record(Timing, data["timing"])
    work = None if data["work"] is None else _record(Work, data["work"])
    known = {name: None if data[name] is None else number(data[name]) for name in ("roofline", "ratio")}
    return _record(Entry, {**data, **known, "timing": timing, "work": work})


def _record(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """A record of what the file has of its fields; what follows from them is left out. Lists become tuples.

    Raises TypeError for a value of another type than its field.
    """
    types = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]  # they are dataclasses
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name in types}
    for name, value in values.items():
        if not _FITS.get(types[name], _anything)(value):
            raise TypeError(f"{name} is {value!r:.60}, which is no {types[name]}")
    return kind(**values)


def _anything(value: object) -> bool:
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_table(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(fits(item) for item in value.values())


# How a field is annotated -> what its value must be; records within records are read before.
_FITS: dict[str, Callable[[object], bool]] = {
    "str": _is_text,
    "str | None": lambda value: value is None or _is_text(value),
    "Status": _is_text,
    "Method": _is_text,
    "int": _is_number,
    "int | None": lambda value: value is None or _is_number(value),
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "bool": lambda value: isinstance(value, bool),
    "tuple[str, ...]": lambda value: isinstance(value, tuple) and all(map(_is_text, value)),
    "dict[str, int]": _is_table(_is_number),
    "dict[str, float]": _is_table(_is_number),
    "dict[str, str]": _is_table(_is_text),
}


_READERS: dict[str, Callable[[Mapping[str, Any]], Content]] = {
    "kernels": RunSummary.from_json,
    "e2e": E2eRecord.from_json,
    "mutants": _score,
    "bench": _bench,
}
