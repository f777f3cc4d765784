"""The folder of a night: how it began, its parts, and at the end what it says."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moecheck.errors import UsageError
from moecheck.report.findings_file import replace_file
from moecheck.report.names import folder_name, point_latest
from moecheck.report.strict_json import dumps

BEGAN, CONFIG, RESULT, SUMMARY = "night.json", "nightly.toml", "nightly.json", "summary.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class NightFolder:
    """`reports/nightly-<utc>-<short id>/`. base: folder at which relative paths of the configuration begin."""

    path: Path
    started: str
    seed: int
    base: Path

    @classmethod
    def create(cls, parent: Path, *, text: str, seed: int | None, base: Path) -> NightFolder:
        """A new folder with a copy of the configuration. seed: None for the date's.

        Raises UsageError where it cannot be written.
        """
        now = datetime.now(UTC)
        path = parent / f"nightly-{folder_name()}"
        night = cls(
            path=path,
            started=now.isoformat(timespec="seconds"),
            seed=int(f"{now:%Y%m%d}") if seed is None else seed,
            base=base,
        )
        try:
            (path / "parts").mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"Cannot write a report into {parent}: {error.strerror}.") from error
        replace_file(path / CONFIG, text)
        began = {"schema": 1, "started": night.started, "seed": night.seed, "base": str(base)}
        replace_file(path / BEGAN, dumps(began, indent=1) + "\n")  # last: a folder that has it can go on
        return night

    @classmethod
    def open(cls, path: Path) -> NightFolder:
        """The folder of a night that was cut off; raises UsageError when it is none."""
        path = path.resolve()
        try:
            data = json.loads((path / BEGAN).read_text(encoding="utf-8"))
            return cls(path=path, started=str(data["started"]), seed=int(data["seed"]), base=Path(data["base"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is no folder of a night: {BEGAN} is missing or broken ({error}).") from error

    @property
    def config(self) -> Path:
        """The copy of the configuration."""
        return self.path / CONFIG

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While this process works on it; raises UsageError where another one does."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(f"Another process is at work in {self.path}.") from error
            yield

    def finish(self, result: dict[str, Any], summary: str) -> list[str]:
        """Write summary.md and nightly.json, and point `latest` here; returns what the user should see."""
        replace_file(self.path / SUMMARY, summary)
        replace_file(self.path / RESULT, dumps(result, indent=1) + "\n")
        note = point_latest(self.path)
        return [note] if note else []
