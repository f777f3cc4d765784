"""The child of `moecheck kernels --sanitizer`: `python -m moecheck.runner.sanitized RECORD` makes one recorded call."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.runner.sanitizer import DECLINED
from moecheck.runner.target import Target
from moecheck.runner.worker import run_case


def main(record: Path) -> int:
    """0 when the call returned, whatever it returned; a reason on standard error else."""
    data = json.loads(record.read_text(encoding="utf-8"))
    outcome = run_case(Target(**data["target"]), Case.from_json(data["case"]))
    if outcome.problem is None:
        return 0
    verdict, message = outcome.problem
    sys.stderr.write(f"moecheck: {message}\n")
    return DECLINED if verdict is Verdict.SKIP else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
