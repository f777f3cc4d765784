"""Runs one small case of a kernel under compute-sanitizer, and makes a finding of what that says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from moecheck.cases import Case
from moecheck.checks.finding import Finding, Verdict
from moecheck.errors import UsageError
from moecheck.runner.plan import Plan, lacking
from moecheck.runner.run import Sink

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
USUAL_PLACE = Path("/usr/local/cuda/bin/compute-sanitizer")
FOUND_ERRORS = 87  # exit code of the tool where it found something
DECLINED = 88  # exit code of the child where the kernel raised Unsupported
ENOUGH_TOKENS = 5
SHOWN_LINES = 6  # of the first error
# `ERROR SUMMARY: 3 errors`, `RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)`
_SUMMARY = re.compile(r"=+ (?:ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards? displayed)")


def find_sanitizer() -> Path:
    """The program; raises UsageError where it is not installed."""
    found = shutil.which("compute-sanitizer")
    if found is not None:
        return Path(found)
    if USUAL_PLACE.exists():
        return USUAL_PLACE
    raise UsageError("--sanitizer needs compute-sanitizer of the CUDA toolkit, on PATH or in /usr/local/cuda/bin.")


def run_sanitizer(plans: Sequence[Plan], tool: str, *, program: Path, timeout: float, jobs: int, sink: Sink) -> None:
    """One finding for each kernel. timeout: seconds for each, many times what a plain call takes."""
    with ThreadPoolExecutor(jobs) as threads:
        for plan, findings in threads.map(lambda plan: (plan, _findings(plan, tool, program, timeout)), plans):
            sink(plan, findings)


def on_device(plans: Sequence[Plan]) -> list[Plan]:
    """The plans of kernels on a CUDA device, each with its small case only.

    Raises UsageError where no kernel runs on such a device.
    """
    able = [plan for plan in plans if plan.device == "cuda"]
    if not able:
        raise UsageError("--sanitizer looks at kernels on a CUDA device, and none of the chosen ones runs on one here.")
    few = [(plan, small_case(plan)) for plan in able]
    return [replace(plan, cases=(case,), left_out=()) for plan, case in few if case is not None]


def small_case(plan: Plan) -> Case | None:
    """The smallest of a kernel's cases that has a few tokens and plain values; None where it takes no case."""
    takes = [case for case in plan.cases if lacking(plan.declaration, case) is None]
    plain = [
        case
        for case in takes
        if case.num_tokens >= ENOUGH_TOKENS and case.stratum == "random" and case.layout == "contiguous"
    ]
    return min(plain or takes, key=lambda case: (case.elements * case.num_tokens, case.id), default=None)


def _findings(plan: Plan, tool: str, program: Path, timeout: float) -> list[Finding]:
    case = small_case(plan)
    if case is None:
        return [
            Finding(
                kernel=plan.declaration.name, case="none", check="case", verdict=Verdict.SKIP, message="takes no case"
            )
        ]
    with tempfile.TemporaryDirectory(prefix="moecheck-sanitizer-") as folder:
        record = Path(folder) / "case.json"
        record.write_text(json.dumps({"target": asdict(plan.target), "case": case.to_json()}), encoding="utf-8")
        verdict, message, numbers = _run(command_of(program, tool, record), timeout)
    return [
        Finding(
            kernel=plan.declaration.name, case=case.id, check=check, verdict=verdict, message=message, numbers=numbers
        )
        for check in (tool, "case")
    ]


def command_of(program: Path, tool: str, record: Path) -> list[str]:
    """The command line of a child that runs the recorded case under the tool."""
    options = ["--tool", tool, "--error-exitcode", str(FOUND_ERRORS), "--print-limit", "20"]
    return [str(program), *options, sys.executable, "-m", "moecheck.runner.sanitized", str(record)]


def _run(command: list[str], timeout: float) -> tuple[Verdict, str, dict[str, float]]:
    # Every tensor an allocation of its own: past the end of one in a pool lies the next, and nobody would notice.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict.TIMEOUT, f"Not finished after {timeout:g} s under {command[2]}; it was stopped.", {}
    except OSError as error:
        raise UsageError(f"Cannot run {command[0]}: {error.strerror}.") from error
    return read_report(done.stdout + done.stderr, done.returncode)


def read_report(text: str, code: int) -> tuple[Verdict, str, dict[str, float]]:
    """Verdict, message and numbers of what the tool and the child printed, and of the exit code.

    An exit code of 0 without the tool's summary is no pass: then it did not look.
    """
    counts = [int(a or b) for a, b in _SUMMARY.findall(text)]
    errors = sum(counts)
    if errors:
        block = first_block(text)
        return Verdict.FAIL, f"{errors} found, the first: {block}", {"errors": float(errors)}
    last = " ".join(line.strip() for line in text.splitlines() if line.strip())[-300:]
    if code == DECLINED:
        return Verdict.SKIP, last.rpartition("moecheck: ")[2].partition(" =====")[0], {}
    if not counts:
        return Verdict.ERROR, f"The tool gave no summary (exit code {code}): {last}", {}
    if code:
        return Verdict.CRASH, f"The call under the tool ended with exit code {code}: {last}", {"errors": 0.0}
    return Verdict.PASS, "", {"errors": 0.0}


def first_block(text: str) -> str:
    """The first error in one line: the lines that follow the tool's banner up to an empty one."""
    lines = [line.partition("=========")[2].strip() for line in text.splitlines() if line.startswith("=========")]
    block: list[str] = []
    for line in lines:
        if not line and block:
            break
        if line and line != "COMPUTE-SANITIZER" and "SUMMARY" not in line:
            block.append(line)
    return "; ".join(block[:SHOWN_LINES]) or "no details"
