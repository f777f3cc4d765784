"""The store: what is added is there once and whole, whoever else writes and whatever kills the writer."""

from __future__ import annotations

import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moecheck.checks.finding import Verdict
from moecheck.errors import UsageError
from moecheck.history import History
from moecheck.history.schema import SCHEMA, TABLES
from moecheck.history.store import FAILURES_KEPT
from tests.history.sample import night_of, result, run

SAMPLE = Path(__file__).with_name("sample.py")
WRITER = """
import runpy, sys
from pathlib import Path
from moecheck.history import History
night_of, result, run = map(runpy.run_path(sys.argv[4]).get, ("night_of", "result", "run"))
path, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for number in range(first, last):
    results = [result(f"kernel-{i}", metrics={"max_diff": float(i), "rms_z": 1.0}) for i in range(40)]
    with History.open(path) as history:
        history.add(night_of(run(*results, night=number), night=number))
"""


def writer(path: Path, first: int, last: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first), str(last), str(SAMPLE)],
        stdout=subprocess.PIPE,
        text=True,
    )


def check_whole(path: Path) -> int:
    """The number of nights, each of which must be whole."""
    with History.open(path, read_only=True) as history:
        nights, metrics = history.nights(), history.metrics()
    assert set(metrics.groupby("night").size()) <= {80}
    assert set(metrics["night"]) == set(nights["night"])
    assert not nights["night"].duplicated().any()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return len(nights)


def test_a_night_is_kept_once(tmp_path: Path) -> None:
    night = night_of(run(result(metrics={"max_diff": 1.0})))
    with History.open(tmp_path / "h.sqlite") as history:
        assert history.add(night)
        assert not history.add(night)
        assert len(history.nights()) == len(history.runs()) == len(history.results()) == len(history.metrics()) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1])
def test_every_number_comes_back(value: float, tmp_path: Path) -> None:
    with History.open(tmp_path / "h.sqlite") as history:
        history.add(night_of(run(result(metrics={"max_diff": value}))))
        kept = float(history.metrics()["value"].iloc[0])
    assert kept == value or (math.isnan(kept) and math.isnan(value))


@pytest.mark.parametrize("name", ["päth with spaces and %20 ?#", "日本"], ids=["signs of an address", "Japanese"])
def test_paths_and_names_of_any_letters(name: str, tmp_path: Path) -> None:
    odd = f"{name} \ud800 '; DROP TABLE runs; --"
    with History.open(tmp_path / name / "h.sqlite") as history:
        history.add(night_of(run(result(odd))))
        kept = str(history.results()["subject"].iloc[0])
    assert kept == odd.replace("\ud800", "?")
    assert (tmp_path / name / "h.sqlite").is_file()


@pytest.mark.parametrize("seed", [0, -(2**63), 2**70])
def test_every_seed_can_be_kept(seed: int, tmp_path: Path) -> None:
    with History.open(tmp_path / "h.sqlite") as history:
        assert history.add_run(replace(run(result()), seed=seed))
        assert float(history.runs()["seed"].iloc[0]) == float(seed)


def test_filters(tmp_path: Path) -> None:
    with History.open(tmp_path / "h.sqlite") as history:
        for number, name in enumerate(["cpu", "gpu", "cpu"]):
            results = [result("a[1]", metrics={"max_diff": 1.0, "rms_z": 2.0}), result("a1", Verdict.FAIL)]
            history.add(night_of(run(*results, night=number), night=number, name=name))
        assert list(history.nights(name="cpu")["night"]) == ["night-000", "night-002"]
        assert list(history.nights(since="2026-01-02")["night"]) == ["night-001", "night-002"]
        assert set(history.results(subject="a[1]*")["subject"]) == {"a[1]"}
        assert set(history.results(subject="a*")["subject"]) == {"a[1]", "a1"}
        assert len(history.metrics(metric="rms_z", name="gpu")) == 1
        assert len(history.failures(night="night-001")) == 4
        assert history.metrics(part="bench").empty
        assert str(history.metrics(part="bench")["started"].dtype).startswith("datetime64")
        with pytest.raises(UsageError, match="no time"):
            history.nights(since="yesterday evening")


@pytest.mark.parametrize("table", TABLES)
def test_nothing_is_changed_or_deleted(table: str, tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    with History.open(path) as history:
        history.add(night_of(run(result(verdict=Verdict.FAIL, metrics={"max_diff": 1.0}))))
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO statuses VALUES ('night-000', '', '', '', '', '', '')")
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET rowid = rowid"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def test_the_failures_of_a_subject_are_bounded_and_counted(tmp_path: Path) -> None:
    many = tuple(result(verdict=Verdict.FAIL).failures[0] for _ in range(FAILURES_KEPT + 7))
    with History.open(tmp_path / "h.sqlite") as history:
        history.add(night_of(run(result(verdict=Verdict.FAIL, failures=many))))
        assert len(history.failures()) == FAILURES_KEPT
        assert history.results()["failed"].tolist() == [FAILURES_KEPT + 7]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no database at all, but long enough to be taken for one" * 9, "Cannot use"),
        (None, "no history of moecheck"),
    ],
    ids=["no database", "another program's database"],
)
def test_other_files_are_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE other (x)")
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        History.open(path)


def test_a_later_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    History.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    with pytest.raises(UsageError, match=f"schema {SCHEMA + 1}"):
        History.open(path)


def test_a_missing_history_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        History.open(tmp_path / "h.sqlite", read_only=True)
    assert not (tmp_path / "h.sqlite").exists()


def test_two_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    both = [writer(path, 0, 25), writer(path, 15, 40)]  # ten nights are added by both
    for one in both:
        one.communicate(timeout=120)
    assert [one.returncode for one in both] == [0, 0]
    assert check_whole(path) == 40


def test_kill_9_leaves_whole_nights(tmp_path: Path) -> None:
    path, rng, before = tmp_path / "h.sqlite", random.Random(0), 0
    for _ in range(5):
        one = writer(path, 0, 300)
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.05, 0.4))
        os.kill(one.pid, signal.SIGKILL)
        one.communicate()
        if path.exists():
            with History.open(path):  # what the killed writer left half done is rolled back
                pass
            after = check_whole(path)
            assert after >= before
            before = after
    assert before > 0
