"""The site as files: what is shown of which runs, and that names and messages of kernels stay texts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from moecheck.checks.finding import Verdict
from moecheck.errors import UsageError
from moecheck.report.e2e_record import E2eRecord
from moecheck.report.results import RunSummary
from moecheck.report.runs import Run, find_runs
from moecheck.report.site import build_site
from moecheck.report.site.links import case_path, run_path, subject_path
from moecheck.report.site.panels import trends
from moecheck.report.site.points import Point, merged, points_of_runs
from tests.report.nights import FIRST, HOSTILE, kernel_names, write_nights
from tests.report.other_runs import E2E, write_bench_run, write_e2e_run, write_mutants_run

NAMES = [*kernel_names(2), HOSTILE[0]]
DIGEST = "[0-9a-f]{8}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three nights, in the last the first kernel fails and in the second the hostile one; a run of each other part."""
    parent = tmp_path_factory.mktemp("runs")
    write_nights(parent, nights=3, names=NAMES, broken=[(2, 0), (1, 2)], hostile=True)
    write_e2e_run(parent / "e2e")
    write_bench_run(parent / "bench")
    write_mutants_run(parent / "mutants")
    found, notes = find_runs([parent])
    assert notes == []
    return found


@pytest.fixture(scope="module")
def site(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pages, notes = build_site(folder, runs)
    assert notes == []
    assert pages == len(list(folder.rglob("*.html")))
    return folder


def page(site: Path, path: str) -> str:
    return (site / path).read_text(encoding="utf-8")


def test_runs_of_every_part_are_found_in_order_of_time(runs: list[Run]) -> None:
    assert [run.part for run in runs if run.part != "kernels"] == ["mutants", "bench", "e2e"]
    assert sum(run.part == "kernels" for run in runs) == 3
    assert [run.started for run in runs] == sorted(run.started for run in runs)
    assert {run.machine for run in runs if run.part == "kernels"} == {"AMD EPYC 9654"}


def test_there_is_a_page_for_each_run_subject_and_case_worth_one(site: Path, runs: list[Run]) -> None:
    nights = [run.name for run in runs if run.part == "kernels"]
    # What failed, and the newest run of each kernel.
    cases = {(nights[2], name) for name in NAMES} | {(nights[1], NAMES[2])}
    wanted = {
        "index.html",
        *(run_path(run.name) for run in runs),
        *(subject_path("kernels", name) for name in NAMES),
        *(case_path(*case) for case in cases),
    }
    found = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    others = {path for path in found - wanted if path.startswith(("e2e/", "bench/"))}

    assert found == wanted | others
    assert len(others) == 1 + 5  # the model with its candidate, the timed kernels


def test_file_names_are_plain_whatever_a_kernel_is_called(site: Path) -> None:
    for path in site.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", path.name)
        assert not path.name.startswith(".")


def test_names_and_messages_stay_texts_on_every_page(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert len(re.findall("<script", text)) == 1
        assert "<img" not in text
        assert not re.search(r"<[^>]*\son\w+=", text)
        assert "javascript:" not in "".join(re.findall(r'href="([^"]*)"', text))
        assert "://" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
        assert "default-src 'none'" in text


def test_the_index_tells_what_changed_and_shows_failures_first(site: Path) -> None:
    text = " ".join(page(site, "index.html").split())
    changed = text[text.index("Changed since the run before") : text.index('id="kernels"')]

    assert NAMES[0] in changed
    assert "✔ pass</span> → <span" in changed
    assert "&lt;script&gt;" in changed  # failed the night before, and passes now
    rows = re.findall(r'data-choice="(\w+)"', text[text.index("<h2>Kernels") : text.index("<h2>End to end")])
    assert rows == ["fail", "pass", "pass"]


def test_a_case_page_has_the_map_the_curve_the_worst_elements_and_the_command(site: Path, runs: list[Run]) -> None:
    newest = [run.name for run in runs if run.part == "kernels"][-1]
    text = page(site, case_path(newest, NAMES[0]))

    for words in ("heat map of the error", "histogram of z against the normal curve", "Worst elements", "slope error"):
        assert words in text
    assert text.count("<svg") == 2
    assert re.search(r"(1,9\d\d|2,0\d\d) of 16,384 elements are above the bound", text)


def test_a_kernel_page_draws_its_numbers_over_the_runs(site: Path) -> None:
    text = page(site, subject_path("kernels", NAMES[1]))

    assert "cpu · AMD EPYC 9654 · nightly: 3 runs" in text
    assert text.count('aria-label="') - text.count("verdicts of") >= 7
    assert "max diff from run to run" in text


def test_the_page_of_an_e2e_run_shows_signals_the_table_and_the_answers_that_changed(
    site: Path, runs: list[Run]
) -> None:
    (run,) = [run for run in runs if run.part == "e2e"]
    text = page(site, run_path(run.name))

    assert isinstance(run.content, E2eRecord)
    assert [signal["name"] for signal in E2E["signals"]] == [signal.name for signal in run.content.signals]
    for words in ("component attribution", "exact_match,strict-match", "baseline right", ">lost</b>"):
        assert words in text
    assert "What &lt;script&gt;" in text


def test_the_page_of_a_mutants_run_has_every_mutant_and_the_coverage(site: Path, runs: list[Run]) -> None:
    (run,) = [run for run in runs if run.part == "mutants"]
    text = page(site, run_path(run.name))

    assert re.findall(r'data-choice="(\w+)"', text) == ["killed", "survived"]
    assert "12/1" in text
    assert "Survivors" in text


def test_runs_of_other_machines_and_profiles_are_other_trends() -> None:
    point = Point(run="a", started=FIRST, part="kernels", subject="k", verdict=Verdict.PASS, values={"max_z": 4.0})
    points = [
        replace(point, machine="cpu A"),
        replace(point, machine="cpu A", started=FIRST + timedelta(days=1), verdict=Verdict.CRASH),
        replace(point, machine="cpu B", started=FIRST + timedelta(days=2)),
        replace(point, machine="cpu B", started=FIRST + timedelta(days=3), profile="quick"),
    ]

    found = [(trend.words, len(trend.points), sum(trend.failed)) for trend in trends(points, "kernels")]

    assert found == [("cpu B · quick", 1, 0), ("cpu B", 1, 0), ("cpu A", 2, 1)]


def test_a_run_that_is_in_the_history_and_on_disk_counts_once(runs: list[Run]) -> None:
    points = points_of_runs(runs)
    older = replace(points[0], run="gone", started=FIRST - timedelta(days=1))

    both = merged([older, *points], points)

    assert [point.run for point in both].count("gone") == 1
    assert len(both) == len(points) + 1
    assert both[0] is older


def test_a_folder_with_something_else_in_it_is_refused(runs: list[Run], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(UsageError, match="is not empty and no site of moecheck"):
        build_site(tmp_path, runs)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_runs_there_is_no_site(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished run"):
        build_site(tmp_path / "site", [])
    assert not (tmp_path / "site").exists()


def test_what_cannot_be_read_is_named_and_costs_the_others_nothing(tmp_path: Path) -> None:
    whole, cut, other = write_nights(tmp_path, nights=3, names=kernel_names(1), broken=[(0, 0)])
    (cut / "summary.json").write_text((cut / "summary.json").read_text()[:200])
    (other / "summary.json").write_text(json.dumps({"kernels": {"a": 1}}))
    (picture,) = (whole / "pictures").iterdir()
    picture.write_text("{}")

    runs, notes = find_runs([tmp_path])
    _, more = build_site(tmp_path / "site", runs)

    assert [run.path for run in runs] == [whole]
    assert [note for note in notes if str(cut) in note or str(other) in note] == notes
    assert len(notes) == 2
    assert len(more) == 1
    assert "cannot be read as a picture" in more[0]
    assert isinstance(runs[0].content, RunSummary)
