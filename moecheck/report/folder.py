"""A report folder: the only place that moecheck writes to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moecheck.checks.finding import Finding, Verdict
from moecheck.errors import UsageError
from moecheck.json_text import loads
from moecheck.report.environment import environment
from moecheck.report.findings_file import append_findings, read_findings, repair_findings, replace_file
from moecheck.report.junit import junit_xml
from moecheck.report.markdown import markdown_summary
from moecheck.report.names import folder_name, point_latest, slug
from moecheck.report.picture import ErrorPicture
from moecheck.report.pictures_file import write_pictures
from moecheck.report.results import RunSummary
from moecheck.report.strict_json import dumps
from moecheck.report.text import one_line


@dataclass(frozen=True, slots=True)
class ReportFolder:
    """`reports/<utc>-<short id>/` and what is in it."""

    path: Path

    @classmethod
    def create(cls, parent: Path) -> ReportFolder:
        """A new folder under `parent`; raises UsageError where it cannot be written."""
        path = parent / folder_name()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            (path / "cases").mkdir()
            (path / "findings.jsonl").touch()
        except OSError as error:
            raise UsageError(f"Cannot write a report into {parent}: {error.strerror}.") from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> ReportFolder:
        """An existing folder (a link such as `latest` is followed); raises UsageError when it is none."""
        if not (path / "findings.jsonl").is_file():
            raise UsageError(f"{path} is no report folder: it has no findings.jsonl.")
        return cls(path.resolve())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of the folder; raises UsageError where one is writing into it. A kill gives it free.

        On file systems without locks nothing is held.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"Another run is writing into {self.path}; wait for its end.") from error
            except OSError:
                pass
            yield
        finally:
            os.close(descriptor)

    def append(self, findings: Sequence[Finding]) -> None:
        """Keep the findings of one kernel x case; the last of them is its `case` line."""
        append_findings(self.path / "findings.jsonl", findings)

    def findings(self) -> list[Finding]:
        """Of every finished kernel x case; reads only."""
        return read_findings(self.path / "findings.jsonl")

    def resume(self) -> list[Finding]:
        """As `findings`, and what a killed run left unfinished is removed from the file, so that `append` can go on."""
        return repair_findings(self.path / "findings.jsonl")

    def summary(self) -> RunSummary:
        """Of a finished run; raises UsageError when summary.json is missing or of another schema."""
        path = self.path / "summary.json"
        try:
            return RunSummary.from_json(loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UsageError(f"{self.path} has no summary.json: its run was cut off; go on with --resume.") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UsageError(f"{path} cannot be read as a summary of schema 1: {one_line(str(error))}.") from error

    def write_environment(self, options: Mapping[str, object]) -> None:
        """environment.json: what the run runs on, and its options."""
        self._write("environment.json", dumps(environment(options), indent=2) + "\n")

    def write_case(self, kernel: str, case: Mapping[str, object]) -> Path:
        """One of cases/*.json, with the case's fields and its `kernel`; a later case with the same `id` replaces it."""
        text = dumps({"kernel": kernel, **case}, indent=2) + "\n"
        identity = f"{kernel}\n{case.get('id', text)}"
        return self._write(f"cases/{slug(identity)}.json", text)

    def finish(self, summary: RunSummary, pictures: Sequence[ErrorPicture] = ()) -> list[str]:
        """Write summary.json, summary.md, junit.xml, pictures/ and report.html, and point `latest` here.

        report.html draws kernels that did not pass only: it is one file, and a picture takes a fifth of a second.

        Returns sentences that the user should see, normally none.
        """
        from moecheck.report.html import html_report  # draws with matplotlib, which takes a second to import

        self._write("summary.json", dumps(summary.to_json(), indent=2) + "\n")
        write_pictures(self.path, pictures)
        self._write("summary.md", markdown_summary(summary))
        self._write("junit.xml", junit_xml(summary, self.findings()))
        passed = {kernel.name for kernel in summary.kernels if kernel.verdict is Verdict.PASS}
        drawn = [picture for picture in pictures if picture.kernel not in passed]
        self._write("report.html", html_report(summary, drawn))
        note = point_latest(self.path)
        return [note] if note else []

    def _write(self, name: str, text: str) -> Path:
        path = self.path / name
        replace_file(path, text)
        return path
