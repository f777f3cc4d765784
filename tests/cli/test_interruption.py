"""A run that is cut off: nothing found is lost, nothing is judged twice, and no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections import Counter
from pathlib import Path

import pytest

from moecheck.checks.finding import Verdict
from moecheck.report.findings_file import read_findings
from tests.cli.command import QUICK, moecheck, start
from tests.cli.processes import MARK, marked, wait_until
from tests.cli.user_kernels import CORRECT, FIRST, write_kernel

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc"),
    pytest.mark.xdist_group("alone"),
]


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """In the environment of every process that the test starts."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    return value


def slow_kernel(folder: Path) -> str:
    path = folder / "slow.py"
    path.write_text(CORRECT.replace(FIRST, f"    time.sleep(0.3)\n{FIRST}"), encoding="utf-8")
    return f"{path}:moe"


def closing(findings: Path) -> list[tuple[str, str]]:
    return [(line.case, line.verdict.value) for line in read_findings(findings) if line.check == "case"]


def judged(out: Path) -> int:
    files = list(out.glob("*/findings.jsonl"))
    return sum(verdict != Verdict.SKIP.value for _, verdict in closing(files[0])) if files else 0


def begin(*specs: str, out: Path, finished: int) -> subprocess.Popen[str]:
    """A run in a process group of its own, of all kernels at a time, that has judged so many cases."""
    words = [word for spec in specs for word in ("--kernel", spec)]
    process = start("kernels", *QUICK, *words, "--jobs", str(len(specs)), "--out", out, cwd=out)
    assert wait_until(lambda: judged(out) >= finished or process.poll() is not None, seconds=240)
    assert process.poll() is None, process.communicate()
    return process


def test_resume_after_kill_9_judges_each_case_once(write: Path, tmp_path: Path, mark: str) -> None:
    spec = slow_kernel(write)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    cut.mkdir()
    process = begin(spec, out=cut, finished=3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    folder = next(cut.iterdir())
    before = closing(folder / "findings.jsonl")

    resumed = moecheck("kernels", "--resume", folder)
    uninterrupted = moecheck("kernels", *QUICK, "--kernel", spec, out=whole)

    after = closing(folder / "findings.jsonl")
    assert resumed.code == uninterrupted.code == 0
    assert after[: len(before)] == before
    assert set(Counter(case for case, _ in after).values()) == {1}
    assert sorted(after) == sorted(closing(uninterrupted.folder / "findings.jsonl"))
    assert wait_until(lambda: not marked(mark), seconds=10) or marked(mark) <= own_servers()


def own_servers() -> set[int]:
    """The fork server and resource tracker of this test process, which later tests use."""
    parents = {int(path.parent.name): path.read_text() for path in Path("/proc").glob("[0-9]*/stat")}
    return {pid for pid, text in parents.items() if int(text.rpartition(")")[2].split()[1]) == os.getpid()}


@pytest.mark.parametrize("name", ["hangs", "hangs-holding-the-lock", "hangs-ignoring-signals"])
def test_kill_9_leaves_no_process_behind(name: str, write: Path, tmp_path: Path, mark: str) -> None:
    process = begin(write_kernel(write, name), out=tmp_path, finished=0)
    assert wait_until(lambda: len(marked(mark)) >= 4, seconds=240)  # run, resource tracker, fork server, worker
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert wait_until(lambda: not marked(mark), seconds=5), marked(mark)


def test_kill_9_ends_every_process_that_judges(write: Path, tmp_path: Path, mark: str) -> None:
    other = write_kernel(write, "correct")
    process = begin(slow_kernel(write), other, out=tmp_path, finished=6)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=15)  # whoever is left holds its output open
    assert wait_until(lambda: not marked(mark), seconds=5), marked(mark)


@pytest.mark.parametrize("name", ["hangs", "hangs-holding-the-lock"])
def test_ctrl_c_ends_at_once_and_says_how_to_go_on(name: str, write: Path, tmp_path: Path, mark: str) -> None:
    process = begin(write_kernel(write, name), out=tmp_path, finished=0)
    assert wait_until(lambda: any(tmp_path.glob("*/environment.json")), seconds=240)
    assert not wait_until(lambda: process.poll() is not None, seconds=1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=15)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1].startswith("moecheck: Interrupted; what was found is kept: go on with --resume")
    assert "Traceback" not in err
    assert wait_until(lambda: not marked(mark), seconds=5), marked(mark)
    assert judged(tmp_path) == 0
