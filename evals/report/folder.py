"""The folder of an end-to-end run: its options and answers while it runs, its report at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moecheck.errors import UsageError
from moecheck.evals.paired.journal import Journal
from moecheck.evals.paired.result import RunResult
from moecheck.evals.paired.self_test import SelfTestRow
from moecheck.json_text import loads
from moecheck.report.environment import environment
from moecheck.report.findings_file import replace_file
from moecheck.report.names import folder_name, point_latest
from moecheck.report.strict_json import dumps

from .documents import RunFacts, html_page, markdown_summary

ENVIRONMENT, ANSWERS = "environment.json", "answers.jsonl"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`reports/<utc>-<short id>/` of an end-to-end run."""

    path: Path

    @classmethod
    def create(cls, parent: Path, options: Mapping[str, object]) -> RunFolder:
        """A new folder with environment.json; raises UsageError where it cannot be written."""
        path = parent / folder_name()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except OSError as error:
            raise UsageError(f"Cannot write a report into {parent}: {error.strerror}.") from error
        data = {**environment(options), "command": "e2e"}
        replace_file(path / ENVIRONMENT, dumps(data, indent=2) + "\n")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an earlier run; raises UsageError when it is none."""
        found = cls(path.resolve())
        found.options()
        return found

    def options(self) -> dict[str, Any]:
        """The options that the run began with."""
        file = self.path / ENVIRONMENT
        try:
            data = loads(file.read_text(encoding="utf-8"))
            if data.get("command") != "e2e":
                raise UsageError(f"{self.path} is the report of another command; --resume takes one of e2e.")
            return dict(data["options"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{self.path} is no folder of an end-to-end run ({file.name}: {error}).") from error

    @property
    def journal(self) -> Journal:
        """The answers that were kept."""
        return Journal(self.path / ANSWERS)

    def keep_self_test(self, rows: Sequence[SelfTestRow]) -> None:
        """Write self_test.json and point `latest` here."""
        replace_file(self.path / "self_test.json", dumps([asdict(row) for row in rows], indent=1) + "\n")
        point_latest(self.path)

    def finish(self, result: RunResult, run: RunFacts) -> list[str]:
        """Write e2e.json, summary.md and report.html, and point `latest` here; returns what the user should know."""
        replace_file(self.path / "e2e.json", dumps({**asdict(run), **result.to_json()}, indent=1) + "\n")
        replace_file(self.path / "summary.md", markdown_summary(result, run))
        replace_file(self.path / "report.html", html_page(result, run))
        note = point_latest(self.path)
        return [note] if note else []
