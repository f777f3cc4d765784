"""Findings to summary: verdicts, worst numbers, totals and speed, by hand-made findings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moecheck.checks.finding import Finding, Verdict
from moecheck.numerics import Numerics
from moecheck.report import RunSummary, reproduce_line, summarise
from moecheck.report.findings_file import read_findings
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


def test_limits_are_those_of_passing_cases_and_the_bluntest_dtype_counts() -> None:
    def case(name: str, factor: float, verdict: Verdict = Verdict.PASS, z: float = 10.0) -> list[Finding]:
        return sample.run("k", name, verdict, numbers={"smallest_factor": factor, "max_z": 1.0, "limit_max_z": z})

    lines = [
        case("op/bf16/a", 8e-5, z=10.4),
        case("op/bf16/b", 7e-5),
        case("op/fp32/a", 2e-7, z=10.8),
        case("op/bf16/bad", 1e-9, Verdict.FAIL, z=99.0),
        case("of another make", 3e-6),
    ]

    (kernel,) = _summarise(lines, "k").kernels

    assert kernel.detection_limits == {"": 3e-6, "bf16": 7e-5, "fp32": 2e-7}
    assert (kernel.detection_limit, kernel.element_limit) == (7e-5, 10.8)


def test_slopes_are_pooled_within_the_dtype_that_is_furthest_from_0() -> None:
    def case(name: str, slope: float, error: float) -> list[Finding]:
        return sample.run("k", name, Verdict.PASS, numbers={"slope_error": slope, "slope_error_se": error})

    lines = [
        case("op/bf16/a", 4e-3, 1e-3),
        case("op/bf16/b", 1e-3, 2e-3),
        case("op/bf16/nan", math.nan, 1e-3),
        case("op/bf16/zeros", 0.0, 0.0),
        case("op/fp32/a", 1e-8, 1e-8),
    ]

    (kernel,) = _summarise(lines, "k").kernels

    # (4e-3 / 1 + 1e-3 / 4) / (1 + 1 / 4), in units of 1e-3
    assert kernel.slope_error == pytest.approx(3.4e-3)
    assert kernel.slope_error_se == pytest.approx(1e-3 / math.sqrt(1.25))


def test_the_contract_is_what_the_last_look_found() -> None:
    first = replace(sample.CONTRACT, facts={"contract": "unknown"}, numbers={"agreement": 0.5})
    lines = [
        sample.run("k", "a", Verdict.PASS, more=(first,)),
        sample.run("k", "b", Verdict.PASS, more=(sample.CONTRACT,)),
        sample.run("k", "skipped", Verdict.SKIP, more=(first,)),
    ]

    (kernel,) = _summarise(lines, "k").kernels

    assert (kernel.contract, kernel.contract_agreement) == ("stores gate/up in bf16", 0.997)
    assert (kernel.contract_runner_up, kernel.contract_runner_up_agreement) == ("act(g) in bf16", 0.644)
    assert kernel.contract_problem is None


def test_a_refuted_contract_is_a_problem_and_a_declared_low_store_is_named() -> None:
    wrong = replace(sample.CONTRACT, verdict=Verdict.FAIL, message="Declares something else.")
    summary = summarise(
        sample.run("k", "a", Verdict.FAIL, more=(wrong,)),
        [sample.declaration("k", numerics=Numerics(scores="input", combine="input", combine_order="slot"))],
        command="c",
        started="2026-01-02T03:04:05Z",
        seconds=1.0,
    )

    assert summary.kernels[0].contract_problem == "Declares something else."
    assert summary.kernels[0].below_floor == ("scores", "combine")


def test_statistics_of_a_kernel_that_passed_are_those_nearest_to_their_limits() -> None:
    lines = [
        sample.run(
            "k", "a", Verdict.PASS, numbers={"max_z": 9.0, "limit_max_z": 10.0, "rms_z": -0.5, "limit_rms_z": 1.0}
        ),
        sample.run(
            "k", "b", Verdict.PASS, numbers={"max_z": 8.0, "limit_max_z": 8.5, "rms_z": 0.0, "limit_rms_z": 0.0}
        ),
    ]

    (kernel,) = _summarise(lines, "k").kernels

    assert [(m.name, m.case, round(m.share, 3)) for m in kernel.statistics] == [
        ("max_z", "b", 0.941),
        ("rms_z", "a", 0.5),
    ]
    assert kernel.rms_z_median == -0.25


def test_statistics_of_a_kernel_that_failed_are_those_of_its_worst_case_and_nan_comes_first() -> None:
    numbers = {"max_z": 3.0, "limit_max_z": 10.0, "rms_z": math.nan, "limit_rms_z": 1.0}
    lines = [
        sample.run("k", "a", Verdict.PASS, numbers={"max_z": 9.0, "limit_max_z": 10.0}),
        sample.run("k", "b", Verdict.FAIL, "NaN", numbers=numbers),
    ]

    (kernel,) = _summarise(lines, "k").kernels

    assert [(m.name, m.case, m.share) for m in kernel.statistics] == [("rms_z", "b", math.inf), ("max_z", "b", 0.3)]
    assert kernel.rms_z_median == math.inf


def test_relations_and_capabilities_are_counted_over_the_cases() -> None:
    def case(name: str, observed: float, fact: str, broken: bool = False) -> list[Finding]:
        facts = {"zero_token": "held", "determinism": fact, "scaled_up": "not tried: silu"}
        more = [sample.finding("determinism", numbers={"deterministic_observed": observed})]
        more += [sample.finding("zero_token", Verdict.FAIL, message="wrong")] if broken else []
        more += [sample.finding("relations", facts={**facts, **({"zero_token": "broken"} if broken else {})})]
        return sample.run("k", name, Verdict.FAIL if broken else Verdict.PASS, more=tuple(more))

    alone = (sample.finding("determinism", Verdict.PROVEN_WRONG, numbers={"deterministic_observed": 0.0}),)
    lines = [
        case("a", 1.0, "held"),
        case("b", 1.0, "held", broken=True),
        sample.run("k", "c", Verdict.PROVEN_WRONG, more=alone),
    ]
    summary = summarise(
        [line for group in lines for line in group],
        [replace(sample.declaration("k"), deterministic=True, batch_invariant=True)],
        command="c",
        started="2026-01-02T03:04:05Z",
        seconds=1.0,
    )

    (kernel,) = summary.kernels

    assert {(r.name, r.held, r.broken, r.not_tried) for r in kernel.relations} == {
        ("zero_token", 1, 1, ""),
        ("determinism", 2, 1, ""),
        ("scaled_up", 0, 0, "silu"),
    }
    assert {(c.name, c.declared, c.observed, c.tried) for c in kernel.capabilities} == {
        ("deterministic", True, 2, 3),
        ("batch_invariant", True, 0, 0),
    }


def test_findings_and_summaries_of_an_earlier_release_still_load(tmp_path: Path) -> None:
    old: dict[str, Any] = {
        "kernel": "k",
        "case": "a",
        "check": "case",
        "verdict": "pass",
        "message": "",
        "numbers": {"max_z": "NaN"},
    }
    old |= {"where": {}, "seconds": 0.1}
    (tmp_path / "findings.jsonl").write_text(json.dumps(old) + "\n", encoding="utf-8")
    kernel = {"name": "k", "op": "permute", "backend": "torch", "device": "cpu", "verdict": "pass", "contract": None}
    data = {**sample.summary().to_json(), "kernels": [kernel]}

    (finding,) = read_findings(tmp_path / "findings.jsonl")
    (summarised,) = _summarise([[finding]], "k").kernels

    assert (finding.facts, finding.limits, finding.diagnosis) == ({}, {}, "")
    assert (summarised.verdict, summarised.contract, summarised.statistics) == (Verdict.PASS, None, ())
    assert RunSummary.from_json(data).kernels[0].relations == ()


def test_inconclusive_cases_are_told_with_their_reasons() -> None:
    lines = [sample.run("k", name, Verdict.INCONCLUSIVE, "undefined") for name in "ab"]

    (kernel,) = _summarise([*lines, sample.run("k", "c", Verdict.PASS)], "k").kernels

    assert (kernel.verdict, kernel.undecided) == (Verdict.PASS, {"undefined": 2})


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
