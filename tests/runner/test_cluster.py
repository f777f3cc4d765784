"""Kernels as tasks of a cluster, here one of threads: findings of a local run, and none lost with a lost machine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moecheck.checks.finding import Finding, Verdict
from moecheck.curated import cases_for
from moecheck.errors import HarnessError
from moecheck.report.strict_json import dumps
from moecheck.runner.cluster import Place, TaskLost, discover_there, run_there, tasks_of_machine
from moecheck.runner.plan import Plan
from moecheck.runner.run import Settings, run_all
from moecheck.scoring.run import Plan as Score
from moecheck.scoring.run import run_score

KERNELS = """\
def shuffle(x, row_map):
    return x[row_map]

def off_by_one(x, row_map):
    return x[row_map - 1]
"""


class Threads:
    """A cluster of a thread of this machine that loses the tasks that are about what it is told."""

    cpus, has_gpu = 1, False

    def __init__(self, *, loses: str = "", error: Exception | None = None) -> None:
        self._threads = ThreadPoolExecutor(1)
        self._loses, self._error = loses, error

    def submit(self, function: Callable[..., Any], /, *args: Any, gpu: bool = False) -> Future[Any]:
        if self._loses and self._loses in str(args):
            lost: Future[Any] = Future()
            lost.set_exception(self._error)
            return lost
        return self._threads.submit(function, *args)


@pytest.fixture
def plans(tmp_path: Path) -> list[Plan]:
    path = tmp_path / "shuffles.py"
    path.write_text(KERNELS, encoding="utf-8")
    specs = [f"{path}:shuffle", f"{path}:off_by_one"]
    found = discover_there(specs, op="shuffle_rows", backend="numpy", cluster=Threads()).found
    assert [one.declaration.name for one in found] == specs
    cases = cases_for("shuffle_rows", profile="quick", seed=0, small=False, model=None, examples=0, dtypes=("fp32",))
    return [
        Plan(target=one.target, declaration=one.declaration, device=one.device, cases=tuple(cases[:3])) for one in found
    ]


class Kept:
    """A sink that remembers, in a form that does not depend on the order or on time."""

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()

    def __call__(self, plan: Plan, findings: list[Finding]) -> None:
        assert {finding.kernel for finding in findings} == {plan.declaration.name}
        self.lines.update(dumps({**finding.to_json(), "seconds": 0}) for finding in findings)


SCORED = Score(
    profile="quick",
    seeds=1,
    legal=0,
    limit_seeds=0,
    kernel_seeds=0,
    mutants=("k-1",),
    ops=("unpermute",),
    everything=False,
)
SETTINGS = Settings(jobs=1, threads=1, memory=2 << 30)


def test_findings_are_those_of_a_local_run(plans: list[Plan]) -> None:
    here, there = Kept(), Kept()
    local = run_all(plans, SETTINGS, here, done=set())
    spread = run_there(plans, SETTINGS, there, done=set(), cluster=Threads())
    assert here.lines == there.lines
    assert any('"proven_wrong"' in line for line in here.lines)
    assert {run.plan.declaration.name: run.failing for run in local} == {
        run.plan.declaration.name: run.failing for run in spread
    }


def test_cases_that_are_done_do_not_run_again(plans: list[Plan]) -> None:
    name, case = plans[0].declaration.name, plans[0].cases[0].id
    kept = Kept()
    run_there(plans[:1], SETTINGS, kept, done={(name, case), ("another", "case")}, cluster=Threads())
    assert kept.lines
    assert not any(case in line for line in kept.lines)


def test_a_kernel_whose_machine_is_lost_for_good_has_an_error_for_each_case(plans: list[Plan]) -> None:
    kept: list[Finding] = []
    cluster = Threads(loses="off_by_one", error=TaskLost("the machine went away."))
    done = {(plan.declaration.name, plan.cases[0].id) for plan in plans}
    run_there(plans, SETTINGS, lambda _, findings: kept.extend(findings), done=done, cluster=cluster)
    errors = [finding for finding in kept if finding.verdict is Verdict.ERROR]
    assert [finding.case for finding in errors] == [case.id for case in plans[1].cases[1:]]
    assert {finding.message for finding in errors} == {"Not run to its end: the machine went away."}
    assert {f.case for f in kept if f.kernel == plans[0].declaration.name} == {c.id for c in plans[0].cases[1:]}


def test_what_breaks_in_the_harness_there_breaks_the_run_here(plans: list[Plan]) -> None:
    cluster = Threads(loses="off_by_one", error=HarnessError("no such thing."))
    with pytest.raises(HarnessError, match="no such thing"):
        run_there(plans, SETTINGS, Kept(), done=set(), cluster=cluster)


def test_the_score_of_mutants_is_that_of_a_local_run() -> None:
    plan = replace(SCORED, jobs=1)
    here = run_score(plan, command="", git=None)
    there = run_score(plan, command="", git=None, cluster=Threads())
    assert here.mutants == there.mutants
    assert here.mutants[0].killed


def test_a_lost_task_of_the_score_is_no_survivor() -> None:
    cluster = Threads(loses="k-1", error=TaskLost("the machine went away."))
    with pytest.raises(HarnessError, match="was not run to its end: the machine went away"):
        run_score(SCORED, command="", git=None, cluster=cluster)


def test_a_place_is_taken_with_its_folder_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOECHECK_TRITON_TILES", "tiles.json")
    monkeypatch.setenv("OTHER", "x")
    place = Place.here()
    assert (place.folder, place.variables["MOECHECK_TRITON_TILES"]) == (str(tmp_path), "tiles.json")
    assert "OTHER" not in place.variables
    monkeypatch.delenv("MOECHECK_TRITON_TILES")
    monkeypatch.chdir("/")
    place.take()
    assert Path.cwd() == tmp_path
    assert os.environ["MOECHECK_TRITON_TILES"] == "tiles.json"
    Place(folder=str(tmp_path / "of another machine")).take()
    assert Path.cwd() == tmp_path


def test_tasks_share_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert [tasks_of_machine(cpus) for cpus in (1, 4, 5, 16, 32)] == [16, 4, 3, 1, 1]
