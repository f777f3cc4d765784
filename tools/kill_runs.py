"""Kills a run of `moecheck kernels` at random moments, resumes it, and compares it with a run that nobody killed.

python tools/kill_runs.py [--kills 20] [--seed 0] [--out FILE.md]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from moecheck.report.findings_file import read_findings
from moecheck.report.strict_json import dumps

KERNELS = """\
import time

def right(x, row_map):
    time.sleep(0.2)
    return x[row_map]

def wrong(x, row_map):
    time.sleep(0.2)
    return x[row_map - 1]
"""
OPTIONS = ("--profile", "quick", "--examples", "0", "--dtype", "fp32", "--op", "shuffle_rows", "--backend", "numpy")
WORDS = ("kernels", *OPTIONS, "--kernel", "kernels.py:right", "--kernel", "kernels.py:wrong")


def main() -> int:
    """1 where a finding was lost, doubled or changed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "kernels.py").write_text(KERNELS, encoding="utf-8")
        begin = time.monotonic()
        run(folder, "--out", "whole").wait()
        whole, seconds = findings(folder / "whole"), time.monotonic() - begin
        kills, bad, finished, target = Counter[str](), [], 0, None
        while kills.total() < asked.kills:
            process = resumed(folder, target) if target else run(folder, "--out", "cut")
            try:
                process.wait(timeout=draw.uniform(0, 1.2 * seconds))
                finished += 1
                bad += difference(whole, findings(folder / "cut"))
                subprocess.run(["rm", "-r", str(folder / "cut")], check=True)
                target = None
                continue
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            folders = list((folder / "cut").glob("2*")) if (folder / "cut").exists() else []
            target = folders[0] if folders and (folders[0] / "environment.json").exists() else None
            kills["before its folder was there" if target is None else f"with {judged(target)} findings kept"] += 1
            if target is None:
                subprocess.run(["rm", "-rf", str(folder / "cut")], check=True)
        last = resumed(folder, target) if target else run(folder, "--out", "cut")
        last.wait()
        bad += difference(whole, findings(folder / "cut"))
    lines = [f"{number} x killed {words}" for words, number in sorted(kills.items())]
    lines += [f"{finished + 1} runs came to their end; {len(bad)} findings lost, doubled or changed."]
    print("\n".join([*lines, *bad[:10]]))  # noqa: T201
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(f"- {line}" for line in lines)
        head = f"# Killed runs\n\n`python tools/kill_runs.py --kills {asked.kills} --seed {asked.seed}`\n\n"
        asked.out.write_text(f"{head}{text}\n", encoding="utf-8")
    return min(len(bad), 1)


def run(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "moecheck", *(more if more[0] == "kernels" else (*WORDS, *more))]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=folder, stdout=null, stderr=null, start_new_session=True)


def resumed(folder: Path, target: Path) -> subprocess.Popen[bytes]:
    return run(folder, "kernels", "--resume", str(target))


def judged(target: Path) -> int:
    return len(read_findings(target / "findings.jsonl"))


def findings(parent: Path) -> Counter[str]:
    (path,) = parent.glob("2*/findings.jsonl")
    # Where a kernel's first case was judged before a kill, a diagnosis of it is written once more: `where`, not what.
    return Counter(dumps({**one.to_json(), "seconds": 0}) for one in read_findings(path))


def difference(whole: Counter[str], cut: Counter[str]) -> list[str]:
    return [f"- {line[:200]}" for line in whole - cut] + [f"+ {line[:200]}" for line in cut - whole]


if __name__ == "__main__":
    sys.exit(main())
