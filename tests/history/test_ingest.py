"""Folders of each command as records: what failed, what passed, and the numbers that are watched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moecheck.bench.entry import Bench, Entry
from moecheck.bench.timing import Timing
from moecheck.checks.finding import Finding, Verdict
from moecheck.errors import UsageError
from moecheck.history.drift import RULES
from moecheck.history.ingest import BENCH_METRICS, KERNEL_METRICS, SCORE, read_run
from moecheck.history.records import Result, Run
from moecheck.report.folder import ReportFolder
from moecheck.report.strict_json import dumps
from moecheck.report.summarise import summarise
from moecheck.scoring.result import Alarms, MutantScore, Score
from tests.report.sample import declaration


def write(folder: Path, name: str, data: dict[str, Any]) -> Path:
    (folder / "environment.json").write_text(json.dumps({"cpu": "a processor", "options": {"seed": 7}}))
    (folder / name).write_text(dumps(data), encoding="utf-8")
    return folder


def subjects(run: Run) -> dict[str, Result]:
    return {one.subject: one for one in run.results}


def test_kernels(tmp_path: Path) -> None:
    folder = ReportFolder.create(tmp_path)
    folder.write_environment({"seed": 7})
    numbers = {"max_diff": 0.5, "rms_z": 1.0}
    for case, verdict in (("op/one", Verdict.PASS), ("op/two", Verdict.FAIL), ("op/three", Verdict.SKIP)):
        lines = [
            Finding(kernel="mine", case=case, check=check, verdict=verdict, message="off by a lot", numbers=numbers)
            for check in ("values", "case")
        ]
        folder.append(lines)
    facts = {"command": "moecheck kernels", "started": "2026-11-22T03:00:00+00:00", "seconds": 1.0, "seed": 7}
    summary = summarise(folder.findings(), [declaration("mine")], skipped={"other": "needs a GPU"}, **facts)  # type: ignore[arg-type]
    folder.finish(summary)

    run = read_run(tmp_path / "latest", label="mine", machine="here")
    mine, other = subjects(run)["mine"], subjects(run)["other"]
    assert (run.run, run.part, run.label, run.machine, run.seed) == (folder.path.name, "kernels", "mine", "here", 7)
    assert (mine.verdict, mine.judged, mine.passing) == (Verdict.FAIL, 2, ("op/one",))
    assert [(one.check, one.case) for one in mine.failures] == [("values", "op/two")]
    assert mine.metrics["max_diff"] == numbers["max_diff"]
    assert (other.verdict, other.message) == (Verdict.SKIP, "needs a GPU")


@pytest.mark.parametrize(("alarms", "checks"), [((), ["score"]), (("a correct kernel was accused",), ["false alarm"])])
def test_mutants(alarms: tuple[str, ...], checks: list[str], tmp_path: Path) -> None:
    mutants = (
        MutantScore(id="dies", kind="routing", words="a bug", ops=("permute",), seeds=3, caught={"permute": 3}),
        MutantScore(id="lives", kind="routing", words="a bug", ops=("permute",), seeds=3),
        MutantScore(id="same", kind="routing", words="no bug", equivalent="it changes nothing"),
    )
    score = Score(
        profile="quick",
        seeds=3,
        command="moecheck mutants",
        mutants=mutants,
        alarms=(Alarms(name="bf16", trials=9, variants=9, alarms=alarms),),
        started="2026-11-22T03:00:00+00:00",
    )
    run = read_run(write(tmp_path, "mutants.json", score.to_json()))
    found = subjects(run)
    assert (run.part, run.machine, run.profile) == ("mutants", "a processor", "quick")
    assert set(found) == {SCORE, "dies", "lives"}
    assert [one.check for one in found[SCORE].failures] == checks
    assert (found[SCORE].metrics["score"], found[SCORE].covered) == (score.overall, False)
    assert (found["dies"].verdict, found["lives"].verdict) == (Verdict.PASS, Verdict.FAIL)
    assert found["dies"].covered
    assert found["lives"].covered


def test_bench(tmp_path: Path) -> None:
    values = {"op": "fused_experts", "model": "mixtral", "weights": "bf16", "tokens": 1, "case": "c", "device": "cpu"}
    timing = Timing.of("host", [1e-3, 2e-3, 3e-3])
    entries = (
        Entry(kernel="fast", status="timed", timing=timing, ratio=0.5, roofline=1e-3, **values),  # type: ignore[arg-type]
        Entry(kernel="bad", status="wrong", reason="off", **values),  # type: ignore[arg-type]
        Entry(kernel="none", status="skipped", reason="needs a GPU", **values),  # type: ignore[arg-type]
    )
    bench = Bench(
        command="moecheck bench",
        started="2026-11-22T03:00:00+00:00",
        seconds=1.0,
        baseline="fast",
        limits={},
        entries=entries,
        skipped={},
    )
    run = read_run(write(tmp_path, "bench.json", bench.to_json()))
    fast, bad, none = run.results
    assert (run.part, run.seed) == ("bench", 7)
    assert fast.subject == "fast · fused_experts · mixtral · bf16 · 1 tokens"
    assert fast.metrics == {"ratio": 0.5, "roofline_share": entries[0].roofline_share, "seconds": timing.median}
    assert [one.verdict for one in run.results] == [Verdict.PASS, Verdict.FAIL, Verdict.SKIP]
    assert [len(one.failures) for one in (fast, bad, none)] == [0, 1, 0]


@pytest.mark.parametrize("outcome", ["pass", "fail", "inconclusive"])
def test_e2e(outcome: str, tmp_path: Path) -> None:
    signals = [
        {"name": "component attribution", "outcome": outcome, "message": "a half", "value": "NaN"},
        {"name": "accuracy", "outcome": "pass", "message": "the same", "value": -0.01},
        {"name": "router agreement", "outcome": "absent", "message": "not seen", "value": None},
    ]
    data = {
        "command": "moecheck e2e",
        "started": "2026-11-22T03:00:00+00:00",
        "seconds": 1.0,
        "facts": {"name": "tiny"},
        "candidate": {"arm": "mine"},
        "verdict": {"outcome": outcome, "reason": "as the test wants it"},
        "signals": signals,
    }
    (one,) = read_run(write(tmp_path, "e2e.json", data)).results
    assert (one.subject, one.verdict.value, one.judged) == ("tiny · mine", outcome, 2)
    assert set(one.metrics) == {"component attribution", "accuracy"}
    assert [failure.check for failure in one.failures] == ["component attribution"] * (outcome == "fail")


def test_every_watched_number_is_read() -> None:
    known = {"kernels": KERNEL_METRICS, "bench": BENCH_METRICS, "mutants": (SCORE,)}
    assert all(metric in known[part] for part, metric in RULES if part in known)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("other.json", "{}", "holds no finished run"),
        ("bench.json", "{", "cannot be read"),
        ("bench.json", "[]", "no JSON object"),
        ("bench.json", "{}", "cannot be read as a run"),
        ("mutants.json", '{"started": 1, "seconds": 1, "command": 1}', "cannot be read as a run"),
        ("e2e.json", '{"started": 1, "seconds": "long", "command": 1}', "cannot be read as a run"),
    ],
)
def test_other_folders(name: str, text: str, words: str, tmp_path: Path) -> None:
    write(tmp_path, "environment.json", {"options": 3})
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        read_run(tmp_path)
