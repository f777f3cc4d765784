"""The block for a pull request: every number that a reviewer asks for, and no text that acts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from moecheck.report.pull_request import pull_request
from moecheck.report.runs import find_runs
from tests.report.nights import HOSTILE, kernel_names, write_nights
from tests.report.other_runs import write_bench_run, write_e2e_run, write_mutants_run


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    parent = tmp_path_factory.mktemp("runs")
    write_nights(parent / "kernels", nights=1, names=kernel_names(2), broken=[(0, 1)])
    write_e2e_run(parent / "e2e")
    write_bench_run(parent / "bench")
    write_mutants_run(parent / "mutants")
    runs, notes = find_runs([parent])
    assert notes == []
    return pull_request(runs)


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose first row begins with `head`."""
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()
    assert all(line.startswith("|") for line in lines)
    found = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in found}) == 1
    return found[2:]


def test_accuracy_of_each_kernel_with_the_mismatch_ratio(text: str) -> None:
    failed, passed = rows(text, "| kernel |")

    assert (failed[0], failed[3], failed[7]) == ("`torch/kernel_01`", "**✘ fail**", "0.0625")
    assert (passed[0], passed[3], passed[7]) == ("`triton/kernel_00`", "✔ pass", "0")
    assert "mismatch ratio (tol 0.01)" in text
    assert "rounding explains ±0.0036). Wrong: 1024 of 16384 elements. Where: token 17, column 3." in text
    assert "\nmoecheck replay " in text


def test_gsm8k_of_both_arms_with_its_statistic(text: str) -> None:
    """190 and 187 of 200 right: .95 ± sqrt(.95 * .05 / 199) = .01545, .935 ± .0175."""
    strict, flexible = rows(text, "| Tasks |")

    assert strict == [
        *("gsm8k", "strict-match", "5", "exact\\_match ↑", "0.9500 ± 0.0154", "0.9350 ± 0.0175"),
        *("-0.0150", "5", "2", "200"),
    ]
    assert flexible[1] == "flexible-extract"
    assert "McNemar, exact: one-sided p = 0.227, two-sided p = 0.453." in text
    assert "90 % interval of the change: -3.91 to +0.66 points." in text
    assert ["identical texts", "**✘ fail**"] in [row[:2] for row in rows(text, "| signal |")]
    assert "|gsm8k|      3|" in text


def test_latency_against_the_baseline(text: str) -> None:
    assert rows(text, "| tokens |") == [
        ["16", "200 µs", "100 µs (2.00 ×)", "**wrong**: &lt;b\\>token 3&lt;/b\\> is wrong \\| 1"],
        ["4096", "2000 µs", "500 µs (4.00 ×)", "–"],
    ]
    assert "2.00 to 4.00 times as fast as `torch/grouped_mm`, **1 wrong or failed result**" in text


def test_the_environment_names_machine_commit_and_versions(text: str) -> None:
    facts = {row[0]: row[1:] for row in rows(text, "|  | ")}

    assert "AMD EPYC 9654" in facts["machine"]
    assert any(machine.endswith("NVIDIA H200") for machine in facts["machine"])
    assert facts["torch"][1] == "2.13.0" or "2.13.0" in facts["torch"]
    assert "0123456789abcdef0123456789abcdef01234567" in facts["commit"]


def test_what_is_not_shown_is_said(tmp_path: Path, text: str) -> None:
    write_bench_run(tmp_path / "bench")
    runs, _ = find_runs([tmp_path])

    assert "* Not shown here: accuracy (moecheck kernels), gsm8k (moecheck e2e)\n" in pull_request(runs)
    assert "Not shown" not in text


def test_many_kernels_that_passed_are_folded_away(tmp_path: Path) -> None:
    write_nights(tmp_path, nights=1, names=kernel_names(20), broken=[(0, 3)])
    runs, _ = find_runs([tmp_path])
    found = pull_request(runs)

    before, _, folded = found.partition("<details><summary>19 kernels passed</summary>")
    assert before.count("kernel_") == 1
    assert folded.count("✔ pass") == 19


def test_hostile_names_and_messages_stay_texts(tmp_path: Path) -> None:
    write_nights(tmp_path, nights=1, names=HOSTILE, broken=[(0, index) for index in range(len(HOSTILE))], hostile=True)
    runs, _ = find_runs([tmp_path])
    found = pull_request(runs)
    page = MarkdownIt("commonmark").enable("table").render(found)

    assert set(re.findall(r"<(\w+)", page)) <= {
        *("h2", "h3", "p", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "em"),
    }
    assert page.count("<td") == (len(HOSTILE) + 1) * 10 - 10 + page[page.index("<h3>Environment") :].count("<td")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", found)
    assert "@" not in re.sub(r"\\@|`[^`]*`", "", found)
    assert max(map(len, found.splitlines())) < 4000
