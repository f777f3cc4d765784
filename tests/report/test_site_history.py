"""The site over a history: nights whose folders are gone stay in the trends, and what the nights said is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moecheck.history import History, Status
from moecheck.history.ingest import read_run
from moecheck.report.runs import find_runs
from moecheck.report.site import build_site
from moecheck.report.site.links import run_path, subject_path
from moecheck.report.site.points import merged, points_of_history, points_of_runs
from moecheck.report.site.statuses import statuses_of_history
from tests.history.sample import night_of, result, run
from tests.report.nights import kernel_names, write_nights

MACHINE = "a processor, an accelerator"
NAMES = kernel_names(2)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history of three nights, the first of which has no folder any more; it and the folders of the others."""
    parent = tmp_path_factory.mktemp("reports")
    folders = write_nights(parent, nights=2, names=NAMES, broken=[(1, 0)])
    for folder in folders:
        (folder / "findings.jsonl").touch()
    old = [
        result(name, op="fused_experts", metrics={"max_z": 4.5, "slope_error": 2e-6, "slope_z": 1.0}) for name in NAMES
    ]
    said = Status(
        label="kernels", subject=NAMES[0], device="cpu", status="regression", message="<b>it passed before</b>"
    )
    with History.open(parent / "history.sqlite") as history:
        history.add(night_of(replace(run(*old), machine=MACHINE, profile="nightly")))
        for number, folder in enumerate(folders, 1):
            statuses = (said,) if number == 2 else ()
            here = read_run(folder, machine=MACHINE)
            night = replace(night_of(here), night=f"night-{number:03}", started=here.started, statuses=statuses)
            history.add(night)
    return parent


def test_points_of_the_store_are_those_of_the_folders(reports: Path) -> None:
    runs, _ = find_runs([reports])
    stored = {(p.run, p.subject): p for p in points_of_history(reports / "history.sqlite")}
    found = points_of_runs(runs)

    assert len(stored) == 6
    for point in found:
        kept = stored[point.run, point.subject]
        assert (kept.verdict, kept.op, kept.device, kept.profile) == (
            point.verdict,
            point.op,
            point.device,
            point.profile,
        )
        assert kept.values["max_z"] == point.values["max_z"]
        assert kept.values["slope_error_se"] == pytest.approx(point.values["slope_error_se"])
    assert {point.machine for point in merged(list(stored.values()), found)} == {MACHINE}


def test_a_night_without_a_folder_stays_in_the_trend_without_a_link(reports: Path, tmp_path: Path) -> None:
    runs, _ = find_runs([reports])
    build_site(tmp_path, runs, history=reports / "history.sqlite")
    text = (tmp_path / subject_path("kernels", NAMES[1])).read_text(encoding="utf-8")
    trends = text[text.index("<section>") :]

    assert "2026-01-01 03:00" in trends
    assert run_path("kernels-000") not in trends
    assert text.count('href="../runs/') == 2
    index = " ".join((tmp_path / "index.html").read_text(encoding="utf-8").split())
    assert '<b class="bad">regression</b>' in index
    assert "&lt;b&gt;it passed before&lt;/b&gt;" in index
    assert f'href="{subject_path("kernels", NAMES[0])}"' in index


def test_a_site_of_a_history_alone(reports: Path, tmp_path: Path) -> None:
    pages, notes = build_site(tmp_path, [], history=reports / "history.sqlite")

    assert (pages, notes) == (3, [])
    assert (tmp_path / subject_path("kernels", NAMES[0])).is_file()


def test_only_the_newest_night_of_each_name_speaks(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    said = Status(label="kernels", subject="mine", device="cpu", status="drift")
    with History.open(path) as history:
        for number, name in enumerate(["cpu", "gpu", "cpu"]):
            night = night_of(run(result(), night=number), night=number, name=name)
            history.add(replace(night, statuses=(replace(said, message=str(number)),)))

    assert [(one.night, one.message, one.tone) for one in statuses_of_history(path)] == [
        ("gpu", "1", "bad"),
        ("cpu", "2", "bad"),
    ]
