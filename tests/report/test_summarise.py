"""Findings to summary: verdicts, worst numbers, totals and speed, by hand-made findings."""

from __future__ import annotations

import json
import math

import pytest

from moecheck.checks.finding import Finding, Verdict
from moecheck.report import RunSummary, reproduce_line, summarise
from moecheck.report.html import html_report
from moecheck.report.markdown import markdown_summary
from moecheck.report.strict_json import dumps
from moecheck.report.terminal import render, run_view
from tests.report import sample


def _summarise(lines: list[list[Finding]], *names: str, seconds: float = 10.0, **options: object) -> RunSummary:
    return summarise(
        [finding for group in lines for finding in group],
        [sample.declaration(name) for name in names],
        command="moecheck kernels",
        started="2026-01-02T03:04:05Z",
        seconds=seconds,
        **options,  # type: ignore[arg-type]  # each test gives options by their own types
    )


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        pytest.param([Verdict.PASS, Verdict.SKIP], Verdict.PASS, id="a skipped case does not spoil a pass"),
        pytest.param([Verdict.PASS, Verdict.FAIL], Verdict.FAIL, id="one failure is a failure"),
        pytest.param([Verdict.FAIL, Verdict.CRASH], Verdict.CRASH, id="a crash is worse than a failure"),
        pytest.param([Verdict.PASS, Verdict.VACUOUS], Verdict.PASS, id="a vacuous case does not spoil a pass"),
        pytest.param([Verdict.VACUOUS, Verdict.VACUOUS], Verdict.VACUOUS, id="only vacuous cases"),
        pytest.param([Verdict.VACUOUS, Verdict.SKIP], Verdict.VACUOUS, id="vacuous and skipped"),
        pytest.param([Verdict.SKIP, Verdict.SKIP], Verdict.SKIP, id="only skipped cases"),
        pytest.param([], Verdict.SKIP, id="no case at all"),
    ],
)
def test_verdict_of_a_kernel_is_the_worst_of_its_cases(verdicts: list[Verdict], expected: Verdict) -> None:
    lines = [sample.run("k", f"c{index}", verdict, "why") for index, verdict in enumerate(verdicts)]

    (kernel,) = _summarise(lines, "k").kernels

    assert kernel.verdict == expected


def test_numbers_are_the_largest_of_the_judged_cases_and_the_message_is_the_worst_cases() -> None:
    lines = [
        sample.run("k", "small", Verdict.PASS, numbers={"max_diff": 3.0, "max_z": 1.0}),
        sample.run("k", "bad", Verdict.FAIL, "wrong row", where={"token": 2}, numbers={"max_diff": 2.0, "max_z": 9.0}),
        sample.run("k", "less bad", Verdict.FAIL, "slightly", numbers={"max_diff": 1.0, "max_z": 8.0}),
        sample.run("k", "none", Verdict.SKIP, "no bf16", numbers={"max_diff": 99.0}),
    ]

    (kernel,) = _summarise(lines, "k", tol=0.01).kernels

    assert (kernel.cases, kernel.passed_cases, kernel.failed_cases, kernel.skipped_cases) == (3, 1, 2, 1)
    assert (kernel.max_diff, kernel.max_z, kernel.rms_z, kernel.tol) == (3.0, 9.0, None, 0.01)
    assert (kernel.worst_case, kernel.check, kernel.message, kernel.where) == (
        "bad",
        "values",
        "wrong row",
        {"token": 2},
    )
    assert kernel.reproduce == reproduce_line("k", "bad")
    assert kernel.skip_reasons == {"no bf16": 1}
    assert kernel.seconds == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("passed", "vacuous", "skipped", "tally"),
    [
        pytest.param(25, 1, 0, "25/25", id="a vacuous case could not fail"),
        pytest.param(25, 0, 25, "25/25", id="half skipped"),
        pytest.param(1, 0, 35, "1/1 (35 skipped)", id="most skipped"),
        pytest.param(0, 2, 0, "0/0", id="only vacuous"),
    ],
)
def test_the_tally_shows_what_was_really_judged(passed: int, vacuous: int, skipped: int, tally: str) -> None:
    verdicts = [Verdict.PASS] * passed + [Verdict.VACUOUS] * vacuous + [Verdict.SKIP] * skipped
    summary = _summarise([sample.run("k", f"c{i}", verdict, "why") for i, verdict in enumerate(verdicts)], "k")
    (kernel,) = summary.kernels

    assert (kernel.cases, kernel.vacuous_cases, kernel.tally) == (passed + vacuous, vacuous, tally)
    assert tally in render(run_view(summary, width=100), width=100, color=False)
    assert tally in markdown_summary(summary).replace("\\", "")


def test_nan_is_the_worst_number_and_makes_the_worst_case() -> None:
    lines = [
        sample.run("k", "nan", Verdict.FAIL, "NaN", numbers={"max_z": math.nan}),
        sample.run("k", "big", Verdict.FAIL, "big", numbers={"max_z": 1e9}),
    ]

    (kernel,) = _summarise(lines, "k").kernels

    assert kernel.max_z is not None
    assert math.isnan(kernel.max_z)
    assert kernel.worst_case == "nan"


def test_a_kernel_that_only_skips_gives_its_most_common_reason() -> None:
    lines = [sample.run("k", f"c{index}", Verdict.SKIP, reason) for index, reason in enumerate(["a", "b", "b"])]

    (kernel,) = _summarise(lines, "k").kernels

    assert kernel.message == "b"
    assert kernel.skip_reasons == {"b": 2, "a": 1}
    assert kernel.reproduce is None


def test_a_kernel_that_passed_has_no_case_to_reproduce() -> None:
    lines = [sample.run("good", "c", Verdict.PASS), sample.run("bad", "c", Verdict.FAIL, "why")]
    asked: list[str] = []

    def reproduce(kernel: str, case: str) -> str:
        asked.append(kernel)
        return f"again {case}"

    summary = _summarise(lines, "good", "bad", reproduce=reproduce)

    assert {kernel.name: kernel.reproduce for kernel in summary.kernels} == {"good": None, "bad": "again c"}
    assert asked == ["bad"]  # asking writes a case file
    assert "None" not in html_report(summary, [])


def test_totals_count_checks_and_speed_leaves_out_interpreted_kernels_and_their_time() -> None:
    lines = [sample.run("fast", f"c{index}", Verdict.PASS) for index in range(8)]
    lines += [sample.run("slow", "c", Verdict.PASS), sample.run("fast", "c8", Verdict.SKIP, "no")]

    summary = _summarise(lines, "fast", "slow", seconds=10.0, interpreted={"slow": 6.0})

    assert {name: number for name, number in summary.totals.items() if number} == {"pass": 9, "skip": 1}
    assert summary.checks_per_second == pytest.approx(8 / 4)


def test_speed_is_unknown_when_only_interpreted_kernels_were_judged() -> None:
    summary = _summarise([sample.run("slow", "c", Verdict.PASS)], "slow", interpreted={"slow": 6.0})

    assert summary.checks_per_second is None


def test_failed_kernels_come_last_and_kernels_that_were_not_run_are_listed() -> None:
    lines = [
        sample.run("a", "c", Verdict.FAIL),
        sample.run("b", "c", Verdict.VACUOUS),
        sample.run("c", "c", Verdict.PASS),
    ]

    summary = _summarise(lines, "a", "b", "c", "gpu", skipped={"gpu": "no GPU"})

    assert [kernel.name for kernel in summary.kernels] == ["c", "b", "a"]
    assert [(entry.name, entry.reason) for entry in summary.skipped] == [("gpu", "no GPU")]


def test_summary_survives_strict_json_with_nan_and_infinity() -> None:
    summary = sample.summary()

    again = RunSummary.from_json(json.loads(dumps(summary.to_json()), parse_constant=_refuse))

    assert repr(again) == repr(summary)


def test_summary_json_has_the_documented_fields() -> None:
    data = sample.summary().to_json()

    assert next(iter(data)) == "schema"
    assert {"command", "started", "seconds", "git", "totals", "checks_per_second", "kernels", "skipped"} <= set(data)
    wanted = (
        "name op backend device verdict cases max_diff max_rel_diff mismatch_ratio tol contract contract_agreement "
        "contract_runner_up detection_limit rms_z max_z slope_error slope_error_se worst_case diagnosis reproduce "
        "seconds"
    )
    assert set(wanted.split()) <= set(data["kernels"][0])


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")
