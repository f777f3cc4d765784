"""One small case under compute-sanitizer: what it prints becomes a finding, and silence is no pass."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from moecheck.checks.finding import Finding, Verdict
from moecheck.curated import cases_for
from moecheck.errors import UsageError
from moecheck.runner import sanitizer
from moecheck.runner.plan import Plan, lacking
from moecheck.runner.sanitizer import first_block, on_device, read_report, run_sanitizer, small_case
from moecheck.runner.target import Target, load
from tests.cli.command import moecheck

BLOCK = """
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at permute_kernel(float *, int)+0x160
=========     by thread (31,0,0) in block (3,0,0)
=========     Address 0x7f01 is out of bounds
=========
========= Program hit something else
========= ERROR SUMMARY: 32 errors
"""
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
RACES = (
    "========= COMPUTE-SANITIZER\n========= Error: Race reported between Write access at a\n=========\n"
    "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n"
)
# Stands for the tool: it runs what it is given and prints what the tool prints.
FAKE = f"""#!{sys.executable}
import os, subprocess, sys
assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
start = sys.argv.index(sys.executable)
code = subprocess.run(sys.argv[start:]).returncode
print("========= COMPUTE-SANITIZER")
if "racecheck" in sys.argv:
    print("========= Error: Race reported between Write access at x")
    print("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)")
    sys.exit(87)
if "synccheck" not in sys.argv:
    print("========= ERROR SUMMARY: 0 errors")
sys.exit(code)
"""
KERNEL = """
import moecheck
from moecheck.references.shuffle_rows import shuffle_rows as reference

@moecheck.kernel("shuffle_rows", backend="numpy")
def works(*, x, row_map):
    return reference(x=x, row_map=row_map)

@moecheck.kernel("shuffle_rows", backend="numpy")
def raises(*, x, row_map):
    raise ValueError("no such thing")

@moecheck.kernel("shuffle_rows", backend="numpy")
def declines(*, x, row_map):
    raise moecheck.Unsupported("needs sm_90")
"""


@pytest.mark.parametrize(
    ("text", "code", "verdict", "words"),
    [
        (CLEAN, 0, Verdict.PASS, ""),
        (BLOCK, 87, Verdict.FAIL, "32 found, the first: Invalid __global__ write of size 4 bytes; at permute_kernel"),
        (RACES, 87, Verdict.FAIL, "2 found, the first: Error: Race reported"),
        (CLEAN, 1, Verdict.CRASH, "exit code 1"),
        ("", 0, Verdict.ERROR, "no summary"),
        ("Device not supported", 1, Verdict.ERROR, "Device not supported"),
        ("moecheck: needs sm_90\n" + CLEAN, 88, Verdict.SKIP, "needs sm_90"),
    ],
    ids=["clean", "an error", "races", "the call fails", "silence", "no device", "declined"],
)
def test_what_the_tool_prints_is_read(text: str, code: int, verdict: Verdict, words: str) -> None:
    """Errors count, whatever the exit code; a pass needs the tool's own summary."""
    found, message, _ = read_report(text, code)
    assert found is verdict
    assert words in message


def test_the_first_error_is_told_alone() -> None:
    """Up to the empty line behind it."""
    assert first_block(BLOCK).endswith("Address 0x7f01 is out of bounds")


def plan_of(file: Path, name: str, device: str = "cuda") -> Plan:
    target = Target(spec_string=f"{file}:{name}")
    cases = tuple(cases_for("shuffle_rows", profile="quick", seed=0))
    return Plan(target=target, declaration=load(target)[1], device=device, cases=cases)


@pytest.fixture
def tools(tmp_path: Path) -> tuple[Path, Path]:
    """The stand-in for the tool, and a file of kernels."""
    program, file = tmp_path / "compute-sanitizer", tmp_path / "mine.py"
    program.write_text(FAKE, encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    file.write_text(KERNEL, encoding="utf-8")
    return program, file


@pytest.mark.parametrize(
    ("kernel", "tool", "verdict", "words"),
    [
        ("works", "memcheck", Verdict.PASS, ""),
        ("works", "racecheck", Verdict.FAIL, "Race reported"),
        ("works", "synccheck", Verdict.ERROR, "no summary"),
        ("raises", "memcheck", Verdict.CRASH, "no such thing"),
        ("declines", "memcheck", Verdict.SKIP, "needs sm_90"),
    ],
)
def test_a_kernel_is_run_in_a_child(
    tools: tuple[Path, Path], kernel: str, tool: str, verdict: Verdict, words: str
) -> None:
    """With the case and the target as the run has them."""
    program, file = tools
    seen: list[Finding] = []
    plans = on_device([plan_of(file, kernel)])
    run_sanitizer(plans, tool, program=program, timeout=60.0, jobs=1, sink=lambda plan, findings: seen.extend(findings))
    assert [finding.check for finding in seen] == [tool, "case"]
    assert {finding.verdict for finding in seen} == {verdict}
    assert words in seen[0].message


def test_the_small_case_is_one_that_the_kernel_takes(tools: tuple[Path, Path]) -> None:
    """With some tokens, so that there is something to look at."""
    plan = plan_of(tools[1], "works")
    case = small_case(plan)
    assert case is not None
    assert lacking(plan.declaration, case) is None
    assert case.num_tokens >= sanitizer.ENOUGH_TOKENS


def test_without_a_device_or_the_tool_it_says_so(
    tools: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Usage errors of one sentence."""
    program, file = tools
    with pytest.raises(UsageError, match="CUDA device"):
        on_device([plan_of(file, "works", device="cpu")])
    monkeypatch.setattr(sanitizer, "USUAL_PLACE", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    absent = moecheck("kernels", "--sanitizer", "memcheck", "--kernel", f"{file}:works", out=tmp_path / "r")
    assert (absent.code, "needs compute-sanitizer" in absent.err) == (2, True)
    monkeypatch.setenv("PATH", str(program.parent))
    idle = moecheck("kernels", "--sanitizer", "memcheck", "--kernel", f"{file}:works", out=tmp_path / "r")
    assert (idle.code, "CUDA device" in idle.err) == (2, True)
    unknown = moecheck("kernels", "--sanitizer", "memchek", out=tmp_path / "r")
    assert (unknown.code, "memcheck" in unknown.err) == (2, True)
