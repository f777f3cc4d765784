"""Kills nights at random moments, goes on with them, and compares what they found with one that was left alone.

python tools/kill_nights.py [--kills N]     # some minutes of one core; writes reports/history/kills.txt
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import click

from moecheck.history import History

OUT = Path(__file__).parent.parent / "reports" / "history" / "kills.txt"
KERNELS = """
import time
import numpy as np
import moecheck

@moecheck.kernel("shuffle_rows", backend="numpy", dtypes=("fp32",))
def rows(x, row_map):
    time.sleep(0.05)
    return x[row_map]

@moecheck.kernel("shuffle_rows", backend="numpy", dtypes=("fp32",))
def wrong(x, row_map):
    time.sleep(0.05)
    out = x[row_map]
    out[-1:] *= 1.5
    return out
"""
CONFIG = """
name = "killed"
seed = 3
[[kernels]]
label = "right"
kernel = ["mine.py:rows"]
profile = "quick"
examples = 6
jobs = 1
[[kernels]]
label = "wrong"
kernel = ["mine.py:wrong"]
profile = "quick"
examples = 6
jobs = 1
"""
Found = dict[str, Counter[tuple[str, str, str, str]]]
MARK = "MOECHECK_KILLED_NIGHT"


def start(folder: Path, mark: str, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "moecheck", "nightly", *words]
    environment = {**os.environ, MARK: mark}
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


def left_over(mark: str, seconds: float = 60.0) -> int:
    """Processes of a killed night that still live after that time."""
    deadline = time.monotonic() + seconds
    while True:
        found = 0
        for process in Path("/proc").glob("[0-9]*/environ"):
            try:
                found += f"{MARK}={mark}".encode() in process.read_bytes().split(b"\0")
            except OSError:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def findings(night: Path) -> Found:
    """Label -> every line of its findings, as often as it is there; a report that nobody finished has none."""
    found: Found = {}
    for label in ("right", "wrong"):
        lines: Counter[tuple[str, str, str, str]] = Counter()
        for report in (night / label).glob("2*/summary.json"):
            for line in (report.parent / "findings.jsonl").read_text(encoding="utf-8").splitlines():
                one = json.loads(line)
                lines[one["kernel"], one["case"], one["check"], one["verdict"]] += 1
        found[label] = lines
    return found


def nights_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "reports").glob("nightly-*") if (path / "night.json").is_file())


def killed_night(folder: Path, rng: random.Random, seconds: float, most: int) -> tuple[Path, int, list[str]]:
    """One night, killed up to `most` times; its folder, the number of kills, and what went wrong."""
    before, kills, wrong = set(nights_of(folder)), 0, []
    night: Path | None = None
    while True:
        mark = uuid.uuid4().hex
        process = start(folder, mark, *(["nightly.toml"] if night is None else ["--resume", str(night)]))
        try:
            process.wait(rng.uniform(0, 1.1 * seconds) if kills < most else None)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            living = left_over(mark)
            wrong += [f"{living} processes outlived the kill"] if living else []
            night = next((path for path in nights_of(folder) if path not in before), None)
            continue
        night = next(path for path in nights_of(folder) if path not in before)
        wrong += [] if process.returncode == 1 else [f"exit code {process.returncode}"]
        return night, kills, wrong


def check(folder: Path, night: Path, expected: Found) -> list[str]:
    """What was lost or doubled in a night that has come to its end."""
    wrong = []
    for label, lines in findings(night).items():
        wrong += [f"{label}: lost {line}" for line in expected[label] - lines]
        wrong += [f"{label}: doubled {line}" for line in lines - expected[label]]
    with History.open(folder / "reports" / "history.sqlite", read_only=True) as history:
        rows = history.nights()
        kept = history.results(night=night.name)
    if list(rows["night"]).count(night.name) != 1:
        wrong.append(f"{night.name} is {list(rows['night']).count(night.name)} times in the history")
    if sorted(kept["subject"]) != ["mine.py:rows", "mine.py:wrong"]:
        wrong.append(f"the history has {sorted(kept['subject'])} of {night.name}")
    return wrong


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--write/--no-write", default=True, help="Whether to write reports/history/kills.txt.")
def main(kills: int, seed: int, write: bool) -> None:
    """Kill, resume, compare; exit code 1 when anything was lost or doubled."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mine.py").write_text(KERNELS, encoding="utf-8")
        (folder / "nightly.toml").write_text(CONFIG, encoding="utf-8")
        begin = time.monotonic()
        process = start(folder, "", "nightly.toml")
        process.wait()
        seconds = time.monotonic() - begin
        whole = nights_of(folder)[0]
        expected = findings(whole)
        lines = sum(sum(found.values()) for found in expected.values())
        if process.returncode != 1 or not all(expected.values()):  # of the wrong kernel
            sys.exit(f"the night that was left alone ended with {process.returncode}: {folder / 'output.txt'}")
        done, nights, wrong = 0, 0, []
        while done < kills:
            night, more, bad = killed_night(folder, rng, seconds, min(4, kills - done))
            done, nights = done + more, nights + 1
            wrong += bad + check(folder, night, expected)
            print(f"{done} kills, {nights} nights, {len(wrong)} wrong", file=sys.stderr)  # noqa: T201
    text = [
        f"{done} times kill -9 at a random moment of {nights} nights, each of which then went on with --resume.",
        f"Each night: two parts, {lines} lines of findings, as in the night that was left alone ({seconds:.0f} s).",
        f"Lost, doubled or left behind: {len(wrong)}.",
        *wrong,
    ]
    print("\n".join(text))  # noqa: T201
    if write:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text("\n".join(text) + "\n", encoding="utf-8")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
