"""Runs the command line inside the test's process, or as a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecheck.checks.finding import Finding
from moecheck.cli import run
from moecheck.report.folder import ReportFolder

# Few cases of small size: these tests are about the runner, not about numbers.
QUICK = ("--profile", "quick", "--examples", "0", "--dtype", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a user sees of one command. folder: the newest report below `--out`."""

    code: int
    out: str
    err: str
    folder: Path

    def kernel(self, spec: str) -> dict[str, Any]:
        """The record of one kernel in summary.json."""
        return next(kernel for kernel in self.summary()["kernels"] if kernel["name"] == spec)

    def summary(self) -> dict[str, Any]:
        data = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        assert isinstance(data, dict)
        return data

    def findings(self, spec: str) -> list[Finding]:
        return [finding for finding in ReportFolder.open(self.folder).findings() if finding.kernel == spec]


def moecheck(*arguments: str | Path, out: Path | None = None) -> Result:
    """Run one command in this process; out: given as `--out`."""
    words = [*map(str, arguments), *(("--out", str(out)) if out else ())]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = run(words)
    return Result(code=code, out=stdout.getvalue(), err=stderr.getvalue(), folder=(out or Path()) / "latest")


HEEDING_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start it as a user does, in a process group of its own that heeds Ctrl-C (a job in the background does not)."""
    script = Path(sysconfig.get_path("scripts")) / "moecheck"
    return subprocess.Popen(
        [sys.executable, "-c", HEEDING_CTRL_C, str(script), *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
