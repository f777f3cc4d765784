"""The views of a run: nothing vital cut off, nothing hostile let through, valid XML, a page that needs no network."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from moecheck.checks.finding import Verdict
from moecheck.report import KernelSummary, RunSummary, picture_of, summarise
from moecheck.report.contracts import contract_lines
from moecheck.report.html import html_report
from moecheck.report.junit import junit_xml
from moecheck.report.limits import run_limits, sees_words
from moecheck.report.markdown import markdown_summary
from moecheck.report.replay import replay_view
from moecheck.report.terminal import render, run_view
from moecheck.report.text import duration, metric, percent, printable
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
    low, table, blocks = text.split("\n\n", 2)
    assert low.startswith("Declared to round below the floor: routing weights:")
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

    assert re.search(r"max_z +366 +10.4 +35.2 ×", text)
    assert "mismatch_ratio=0.0625" in text
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


VIEWS = ["terminal", "markdown", "html", "junit"]


def view(summary: RunSummary, name: str) -> str:
    """One view as text on one line, without Markdown's and XML's escapes."""
    if name == "terminal":
        text = render(run_view(summary, width=120), width=120, color=False)
    elif name == "markdown":
        text = re.sub(r"\\(.)", r"\1", markdown_summary(summary))
    else:
        text = html_report(summary) if name == "html" else junit_xml(summary, FINDINGS)
    return " ".join(html.unescape(text).split())


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_says_what_it_looks_like_where_kernels_round_and_what_a_pass_is_worth(
    summary: RunSummary, name: str
) -> None:
    text = view(summary, name)

    assert "ooks like: the rows of two experts are exchanged (vllm-project/vllm#28540)." in text
    assert "stores gate/up in bf16; agreement 0.9970" in text
    assert "a factor of 1 ± 7.6e-05" in text
    assert "one element off by 10.4 sigma" in text
    if name != "junit":
        assert f"Declared to round below the floor: routing weights: {sample.GOOD}." in text
        assert f"(worst kernel: {sample.GOOD})" in text


@pytest.mark.parametrize("name", ["terminal", "markdown", "html"])
def test_a_contract_that_is_odd_is_shown_where_the_kernel_failed_for_another_reason(
    summary: RunSummary, name: str
) -> None:
    failed = next(kernel for kernel in summary.kernels if kernel.name == sample.ROWS)
    wrong = replace(failed, contract_problem="It declares combine in bf16 and does otherwise.")
    unknown = replace(failed, contract="unknown", contract_agreement=0.25)

    assert "declares combine in bf16 and does otherwise." in view(replace(summary, kernels=(wrong,)), name)
    assert "nknown: the best of those tried reproduces 0.2500" in view(replace(summary, kernels=(unknown,)), name)


@pytest.mark.parametrize("name", ["terminal", "markdown", "html"])
def test_inconclusive_cases_of_a_kernel_that_passed_are_shown(summary: RunSummary, name: str) -> None:
    passed = next(kernel for kernel in summary.kernels if kernel.name == sample.GOOD)
    unsure = replace(passed, undecided={"what is required could not be shown": 2})

    assert "what is required could not be shown" in view(replace(summary, kernels=(unsure,)), name)


def test_equal_contracts_are_one_line_and_unknown_ones_are_named(summary: RunSummary) -> None:
    good = next(kernel for kernel in summary.kernels if kernel.name == sample.GOOD)
    same = [replace(good, name=f"k{index}", contract_agreement=0.99 - index / 1000) for index in range(4)]
    odd = replace(good, name="odd", contract="unknown", contract_agreement=0.65)

    lines = contract_lines(replace(summary, kernels=(odd, *same)))

    assert lines == [
        "4 kernels: stores gate/up in bf16; agreement 0.9870 or better",
        "contract unknown: odd (the best of those tried reproduces 0.650 of the bits)",
    ]


def test_html_shows_statistics_relations_and_capabilities_escaped(page: str) -> None:
    text = " ".join(page.split())

    assert '<td class="what">max z</td><td class="number" data-label="value">366</td>' in text
    assert '<td class="number bad" data-label="of limit">35.2 ×</td>' in text
    assert "Relations: 2 held, 1 not tried" in text
    assert "not tried: silu is &lt;not&gt; linear" in text
    assert "deterministic: observed on 1 of 1 case" in text


@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        pytest.param({"op": "permute"}, "Every element is compared exactly: any wrong one shows.", id="exact"),
        pytest.param({}, "How small an error would have shown is not known: too few elements passed.", id="small"),
        pytest.param({"passed_cases": 0}, None, id="nothing passed"),
        pytest.param(
            {"detection_limit": 7e-5, "detection_limits": {"bf16": 7e-5, "fp32": 2e-7}, "element_limit": 10.4},
            "Sees a factor of 1 ± 7.0e-05 (bf16), 1 ± 2.0e-07 (fp32) on the whole output, and one element off by 10.4 "
            "sigma.",
            id="by dtype",
        ),
        pytest.param(
            {"op": "topk_routing", "detection_limit": 2e-6, "detection_limits": {"fp32": 2e-6}},
            "Sees a factor of 1 ± 2.0e-06 on all routing weights, and any illegal choice of experts.",
            id="router",
        ),
    ],
)
def test_what_a_pass_is_worth(kernel: dict[str, Any], sentence: str | None) -> None:
    fields = {"name": "k", "op": "fused_experts", "backend": "torch", "device": "cpu", "passed_cases": 3, **kernel}

    assert sees_words(KernelSummary(verdict=Verdict.PASS, **fields)) == sentence


def test_the_run_names_its_blindest_kernel_and_those_without_a_limit(summary: RunSummary) -> None:
    fields: dict[str, Any] = {"backend": "torch", "device": "cpu", "verdict": Verdict.PASS, "passed_cases": 1}
    kernels = [
        KernelSummary(name="sharp", op="fused_experts", detection_limit=1e-6, element_limit=11.0, **fields),
        KernelSummary(name="blunt", op="unpermute", detection_limit=1e-4, element_limit=10.0, **fields),
        KernelSummary(name="tiny", op="moe_layer", **fields),
        KernelSummary(name="moves", op="permute", **fields),
        KernelSummary(name="routes", op="topk_routing", detection_limit=1e-2, **fields),
    ]

    assert run_limits(replace(summary, kernels=tuple(kernels))) == (
        "Every pass would have seen a factor of 1 ± 1.0e-04 on an output (worst kernel: blunt) and one element off by "
        "11.0 sigma and a factor of 1 ± 1.0e-02 on routing weights (worst kernel: routes); "
        "1 kernel of exact ops: any wrong element; not known of 1 kernel."
    )
    assert run_limits(replace(summary, kernels=tuple(kernels[2:4]))) is None


@pytest.mark.parametrize(
    ("share", "text"), [(0.123, "12 %"), (1.5, "150 %"), (35.19, "35.2 ×"), (float("inf"), "> 1000 ×")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_replay_without_a_picture_shows_the_findings() -> None:
    lines = [line for line in FINDINGS if line.kernel == "pallas:gmm"]

    assert "needs a TPU" in render(replay_view(lines, width=80), width=80, color=False)


def test_markdown_can_be_pasted(summary: RunSummary) -> None:
    text = markdown_summary(summary)

    assert text.startswith("## moecheck: ✘ 4 of 7 kernels failed")
    rows = [re.sub(r"\\\|", "", line) for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {11}
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
