"""The views of a run: nothing vital cut off, nothing hostile let through, valid XML, a page that needs no network."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from moecheck.checks.finding import Verdict
from moecheck.report import RunSummary, picture_of, summarise
from moecheck.report.html import html_report
from moecheck.report.junit import junit_xml
from moecheck.report.markdown import markdown_summary
from moecheck.report.replay import replay_view
from moecheck.report.terminal import render, run_view
from moecheck.report.text import duration, metric, printable
from tests.report import sample

FINDINGS = [finding for group in sample.findings() for finding in group]


@pytest.fixture(scope="module")
def summary() -> RunSummary:
    return sample.summary()


@pytest.fixture(scope="module")
def page(summary: RunSummary) -> str:
    return html_report(summary, sample.pictures())


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("width", [80, 100, 140])
def test_terminal_fits_and_keeps_commands_whole(summary: RunSummary, width: int) -> None:
    text = render(run_view(summary, width=width, report="reports/x"), width=width, color=False)

    commands = [kernel.reproduce for kernel in summary.kernels if kernel.failed]
    assert len(commands) == 4
    for command in commands:
        assert f"  {printable(command or '')}\n" in text
    assert all(len(line) <= width for line in text.splitlines() if "moecheck replay" not in line)
    assert "…" not in text
    assert text.endswith("Report: reports/x\n")
    table, blocks = text.split("\n\n", 1)
    assert [mark for mark in table if mark in "✔○✘"] == list("✔✔○✘✘✘✘")
    assert "token 17, column 300" in blocks
    assert "Skipped 2 kernels: needs a CUDA device, have none\n  cuda:fp8_gemm, cuda:nvfp4\n" in blocks


def test_terminal_without_colour_has_no_escape_and_with_colour_none_from_a_kernel(summary: RunSummary) -> None:
    view = run_view(summary, width=100)

    assert "\x1b" not in render(view, width=100, color=False)
    coloured = render(view, width=100, color=True)
    assert "\x1b[1;31m" in coloured
    assert "\x1b[2J" not in coloured


def test_a_clean_run_has_no_blocks_and_an_empty_one_says_so(summary: RunSummary) -> None:
    passed = tuple(kernel for kernel in summary.kernels if kernel.verdict == Verdict.PASS)
    clean = render(run_view(replace(summary, kernels=passed, skipped=()), width=100), width=100, color=False)
    empty = render(run_view(replace(summary, kernels=(), skipped=()), width=100), width=100, color=False)

    assert "✔ 2 kernels passed" in clean
    assert "replay" not in clean
    assert "nothing was judged" in empty


@pytest.mark.parametrize("width", [80, 140])
def test_replay_shows_numbers_worst_elements_and_where(width: int) -> None:
    picture = sample.pictures()[0]
    lines = [line for line in FINDINGS if line.kernel == sample.ROWS and line.verdict == Verdict.FAIL]

    text = render(replay_view(lines, width=width, picture=picture, reproduce="again"), width=width, color=False)

    assert "max_z=366" in text
    assert text.count("Seen: rows 16 to 23") == 1
    assert re.search(r"^ +16 █{60,}$", text, re.MULTILINE)
    assert re.search(r"^ +24 [·░▒]+$", text, re.MULTILINE)
    assert all(len(line) <= width for line in text.splitlines())
    assert text.endswith("\nagain\n")


def test_replay_of_a_perfect_run_has_no_worst_elements() -> None:
    picture = picture_of(np.ones((3, 5)), np.ones((3, 5)), 0.1, kernel="k", case="c")

    text = render(replay_view(sample.run("k", "c", Verdict.PASS), width=80, picture=picture), width=80, color=False)

    assert "0 elements of 15 above the bound" in text
    assert "expected" not in text
    assert "  0 ·····\n" in text


def test_a_diagnosis_is_shown_everywhere(summary: RunSummary) -> None:
    kernels = tuple(replace(kernel, diagnosis="rows swapped") for kernel in summary.kernels if kernel.failed)
    diagnosed = replace(summary, kernels=kernels, profile=None, seed=None, git=None, tol=None)

    assert "  looks like: rows swapped\n" in render(run_view(diagnosed, width=100), width=100, color=False)
    assert "Looks like: rows swapped" in markdown_summary(diagnosed)
    assert "Looks like: rows swapped" in html_report(diagnosed)


def test_replay_without_a_picture_shows_the_findings() -> None:
    lines = [line for line in FINDINGS if line.kernel == "pallas:gmm"]

    assert "needs a TPU" in render(replay_view(lines, width=80), width=80, color=False)


def test_markdown_can_be_pasted(summary: RunSummary) -> None:
    text = markdown_summary(summary)

    assert text.startswith("## moecheck: ✘ 4 of 7 kernels failed")
    rows = [re.sub(r"\\\|", "", line) for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {10}
    outside_code = re.sub(r"```.*?```|(`+).*?\1", "", text, flags=re.DOTALL)
    assert "<script" not in outside_code
    assert "<img" not in outside_code


def test_html_escapes_kernels_and_has_only_its_own_script(page: str) -> None:
    tags = _Tags(page).tags

    assert [attrs for tag, attrs in tags if tag == "script"] == [{}]
    assert not [tag for tag, attrs in tags if tag == "img" or any(name.startswith("on") for name in attrs)]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)


def test_html_asks_nothing_of_the_network(page: str) -> None:
    addresses = [
        value or ""
        for _, attrs in _Tags(page).tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href")
    ]

    assert "://" not in page
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"@import|url\((?!#)", page)


def test_html_links_lead_somewhere_and_ids_of_articles_are_unique(page: str) -> None:
    tags = _Tags(page).tags
    ids = [attrs["id"] for tag, attrs in tags if tag in ("article", "details") and "id" in attrs]

    assert len(ids) == len(set(ids)) == 7
    assert {attrs["href"] for tag, attrs in tags if tag == "a"} == {f"#{name}" for name in ids}
    assert page.count("<svg ") == 6


def test_junit_is_valid_and_counts_add_up(summary: RunSummary) -> None:
    root = ET.fromstring(junit_xml(summary, FINDINGS))

    counts = {name: int(root.get(name, "-1")) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 23, "failures": 3, "errors": 1, "skipped": 5}
    assert len(root.findall("testsuite/testcase")) == 23
    failure = root.find(f"testsuite[@name='{sample.ROWS}']/testcase/failure")
    assert failure is not None
    assert (failure.text or "").endswith(f"moecheck replay {sample.CASE_ID}1 --kernel {sample.ROWS}")


def test_junit_of_a_kernel_without_cases_is_one_skipped_test() -> None:
    summary = summarise([], [sample.declaration("k")], command="c", started="2026-01-02T03:04:05Z", seconds=1.0)

    root = ET.fromstring(junit_xml(summary, []))

    assert [node.get("message") for node in root.iter("skipped")] == ["no case was selected for it"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (float("nan"), "NaN"), (float("inf"), "inf"), (0.0, "0"), (0.00123456, "0.00123")]
)
def test_metric(value: float | None, text: str) -> None:
    assert metric(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.34, "340 ms"), (12.34, "12.3 s"), (245.0, "4 min 05 s")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
