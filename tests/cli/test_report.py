"""moecheck report: every format from folders on disk, and one sentence for what cannot be shown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.cli.command import moecheck
from tests.report.nights import HOSTILE, kernel_names, write_nights
from tests.report.other_runs import write_bench_run, write_e2e_run, write_mutants_run

NAMES = [*kernel_names(2), "=HYPERLINK(1)"]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three kernels, the second of which is wrong."""
    (folder,) = write_nights(tmp_path_factory.mktemp("reports"), nights=1, names=NAMES, broken=[(0, 1)])
    (folder / "findings.jsonl").touch()
    return folder


def test_the_site_is_written_beside_the_runs(night: Path) -> None:
    result = moecheck("report", night.parent, "--format", "site", "--title", "Nights & days")

    assert (result.code, result.err) == (0, "")
    assert result.out == f"8 pages over 1 run: {night.parent / 'site' / 'index.html'}\n"
    assert "<h1>Nights &amp; days</h1>" in (night.parent / "site" / "index.html").read_text(encoding="utf-8")
    assert moecheck("report", night.parent, "--format", "site").code == 0  # an earlier site is replaced


def test_one_run_in_other_forms(night: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(moecheck("report", night, "--format", "csv").out)))
    assert [(row["name"], row["verdict"]) for row in rows] == [
        (NAMES[0], "pass"),
        ("'=HYPERLINK(1)", "pass"),
        (NAMES[1], "fail"),
    ]
    assert float(rows[2]["mismatch_ratio"]) == 0.0625
    page = moecheck("report", night, "--format", "html").out
    assert page.count("<svg ") == 2
    assert moecheck("report", night).out.startswith("## moecheck: ✘ 1 of 3 kernels failed")
    assert ET.fromstring(moecheck("report", night, "--format", "junit").out).tag == "testsuites"


def test_a_pull_request_into_a_file(night: Path, tmp_path: Path) -> None:
    write_bench_run(tmp_path / "bench")
    file = tmp_path / "pr.md"
    result = moecheck("report", night, tmp_path / "bench", "--format", "pr", out=file)

    assert (result.code, result.out) == (0, "")
    text = file.read_text(encoding="utf-8")
    assert "### Latency" in text
    assert "### Accuracy against float64 references" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(["{night}", "--format", "sight"], "Did you mean 'site'?", id="format"),
        pytest.param(["{night}/nothing"], "is no folder; give one that", id="no folder"),
        pytest.param(["{empty}", "--format", "pr"], "no finished run of moecheck is there", id="nothing to paste"),
        pytest.param(["{empty}", "--format", "site"], "There is no finished run to show", id="nothing to show"),
        pytest.param(["{empty}"], "no finished run of moecheck is there", id="no summary"),
        pytest.param(["{night}", "--format", "site", "--out", "{night}"], "is not empty and no site", id="foreign"),
        pytest.param(["{night}", "--format", "site", "--history", "{night}/no"], "does not exist", id="no history"),
        pytest.param(
            ["{night}", "--format", "site", "--history", "{night}/summary.json"], "history", id="another file"
        ),
        pytest.param(["{night}", "--format", "pr", "--history", "x"], "--history is for --format site", id="history"),
        pytest.param(["{night}", "--format", "csv", "--out", "{night}/cases/x/y.csv"], "Cannot write", id="no place"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(words: list[str], sentence: str, night: Path, tmp_path: Path) -> None:
    result = moecheck("report", *(word.format(night=night, empty=tmp_path) for word in words))

    assert result.code == 2
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", ["summary.json", "e2e.json", "bench.json", "mutants.json"])
@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", "{}", '{"schema": 1}', "[" * 5000, '{"kernels": 3, "skipped": [], "started": "x"}', "\x00\xff"],
    ids=["empty", "null", "list", "object", "schema", "deep", "wrong types", "bytes"],
)
def test_a_file_that_is_no_run_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))

    result = moecheck("report", tmp_path, "--format", "pr")

    assert result.code == 2
    assert f"{name} cannot be read as a finished run of moecheck" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("write", "name", "path", "value"),
    [
        (write_bench_run, "bench.json", ("entries", 0, "tokens"), "16"),
        (write_bench_run, "bench.json", ("entries", 0, "reason"), 7),
        (write_bench_run, "bench.json", ("entries", 0, "timing", "median"), None),
        (write_bench_run, "bench.json", ("skipped",), {"k": []}),
        (write_mutants_run, "mutants.json", ("mutants", 0, "caught"), {"topk_routing": "20"}),
        (write_mutants_run, "mutants.json", ("mutants", 0, "sources"), [1]),
        (write_mutants_run, "mutants.json", ("coverage", 0, "cases"), None),
        (write_mutants_run, "mutants.json", ("seeds",), True),
        (write_e2e_run, "e2e.json", ("signals", 0, "value"), "much"),
        (write_e2e_run, "e2e.json", ("tables", "exact_match,strict-match", "lost"), "x"),
        (write_e2e_run, "e2e.json", ("pairs",), [[1, 2]]),
        (write_e2e_run, "e2e.json", ("started",), "yesterday"),
    ],
)
def test_a_value_of_another_type_is_named(
    write: Callable[[Path], None], name: str, path: tuple[str | int, ...], value: object, tmp_path: Path
) -> None:
    write(tmp_path / "run")
    file = tmp_path / "run" / name
    data = json.loads(file.read_text(encoding="utf-8"))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(data), encoding="utf-8")

    result = moecheck("report", tmp_path, "--format", "pr")

    assert result.code == 2
    assert f"{name} cannot be read as a finished run" in result.err
    assert "Traceback" not in result.err


def test_a_run_with_hostile_names_can_be_shown_in_every_form(tmp_path: Path) -> None:
    write_nights(tmp_path, nights=1, names=HOSTILE, broken=[(0, index) for index in range(7)], hostile=True)
    (folder,) = tmp_path.iterdir()
    (folder / "findings.jsonl").touch()

    for form in ("html", "md", "junit", "csv", "pr"):
        result = moecheck("report", folder, "--format", form)
        assert (result.code, result.err) == (0, "")
        assert not set(result.out) & {"\x00", "\x1b", "\u202e", "\u2066"}
    assert json.loads((folder / "summary.json").read_text())["kernels"]
