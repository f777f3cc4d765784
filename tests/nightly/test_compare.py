"""The comparison: what is new, what is old, what is known, and the exit code that follows."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from moecheck.checks.finding import Verdict
from moecheck.history import Failure, History, Result, Run, Status
from moecheck.history.drift import Drift
from moecheck.nightly.compare import CODES, Before, Comparison, compare, exit_code
from moecheck.nightly.xfail import Entry
from tests.history.sample import day, night_of, result, run

TODAY = date(2026, 11, 22)
KNOWN = Entry(subject="mine", issue="https://example.org/1", expires=TODAY)
PASS, FAIL, SKIP = result(), result(verdict=Verdict.FAIL), result(verdict=Verdict.SKIP)
UNSURE = result(verdict=Verdict.INCONCLUSIVE)


def before(path: Path, nights: list[list[Result]], entries: tuple[Entry, ...] = ()) -> Before:
    """What a history tells of nights with these results, each compared with those before."""
    with History.open(path / "h.sqlite") as history:
        for number, results in enumerate(nights):
            tonight = run(*results, night=number)
            said = compare([tonight], known_before(history, number), entries, [], today=TODAY).statuses
            history.add(replace(night_of(tonight, night=number), statuses=said))
        return known_before(history, len(nights))


def known_before(history: History, night: int) -> Before:
    return Before.of(history.results(), history.statuses(), night=f"night-{night:03}", started=day(night))


def said(comparison: Comparison) -> list[tuple[str, str]]:
    return [(one.status, one.subject) for one in comparison.statuses]


@pytest.mark.parametrize(
    ("nights", "tonight", "statuses", "code"),
    [
        ([], PASS, [], 0),
        ([], FAIL, ["new failure"], 1),
        ([[PASS]], PASS, [], 0),
        ([[PASS]], FAIL, ["regression"], 1),
        ([[FAIL]], FAIL, ["still failing"], 1),
        ([[PASS], [FAIL]], FAIL, ["still failing"], 1),
        ([[FAIL], [PASS]], FAIL, ["regression"], 1),
        ([[PASS], [SKIP]], FAIL, ["regression"], 1),
        ([[FAIL]], PASS, ["fixed"], 0),
        ([[PASS]], SKIP, ["lost"], 4),
        ([[FAIL]], SKIP, ["lost"], 4),
        ([[PASS], [SKIP]], SKIP, [], 0),
        ([], SKIP, [], 0),
        ([[PASS]], UNSURE, ["undecided"], 4),
        ([[PASS]], result(verdict=Verdict.CRASH), ["regression"], 1),
        ([[PASS]], result(verdict=Verdict.FAIL, failures=()), ["regression"], 1),
    ],
)
def test_tonight_against_the_nights_before(
    nights: list[list[Result]], tonight: Result, statuses: list[str], code: int, tmp_path: Path
) -> None:
    found = compare([run(tonight, night=9)], before(tmp_path, nights), (), [], today=TODAY)
    assert said(found) == [(status, "mine") for status in statuses]
    assert exit_code(found.statuses) == code


@pytest.mark.parametrize(
    ("nights", "tonight", "statuses", "code"),
    [
        ([], FAIL, ["known"], 0),
        ([[PASS]], FAIL, ["known"], 0),
        ([[FAIL]], FAIL, ["known"], 0),
        ([[FAIL]], PASS, ["unexpected pass", "fixed"], 1),
        ([], UNSURE, ["known"], 0),
        ([], SKIP, ["not run"], 0),
    ],
)
def test_a_known_finding(
    nights: list[list[Result]], tonight: Result, statuses: list[str], code: int, tmp_path: Path
) -> None:
    found = compare([run(tonight, night=9)], before(tmp_path, nights, (KNOWN,)), (KNOWN,), [], today=TODAY)
    assert said(found) == [(status, "mine") for status in statuses]
    assert exit_code(found.statuses) == code


def test_a_failure_beyond_the_known_ones_is_a_regression(tmp_path: Path) -> None:
    earlier = before(tmp_path, [[FAIL]], (KNOWN,))
    entry = Entry(subject="mine", check="values", issue=KNOWN.issue, expires=TODAY)
    worse = result(verdict=Verdict.FAIL, failures=(*FAIL.failures, Failure(check="determinism", message="twice")))
    found = compare([run(worse, night=9)], earlier, (entry,), [], today=TODAY)
    assert [(one.status, one.check) for one in found.statuses] == [("regression", "determinism"), ("known", "values")]
    assert exit_code(found.statuses) == 1


def test_an_entry_that_ran_out_covers_nothing(tmp_path: Path) -> None:
    old = Entry(subject="mine", issue=KNOWN.issue, expires=date(2026, 11, 21))
    found = compare([run(FAIL, night=9)], before(tmp_path, [[FAIL]], (KNOWN,)), (old,), [], today=TODAY)
    assert said(found) == [("regression", "mine"), ("expired", "mine")]


def test_an_entry_that_matches_nothing_is_warned_about(tmp_path: Path) -> None:
    slip = Entry(subject="mien", issue=KNOWN.issue, expires=TODAY)
    found = compare([run(PASS, night=9)], before(tmp_path, [[PASS]]), (slip,), [], today=TODAY)
    assert said(found) == [("matches nothing", "mien")]
    assert exit_code(found.statuses) == 0


def test_only_what_changed_is_named(tmp_path: Path) -> None:
    names = [f"kernel-{number}" for number in range(9)]
    earlier = before(tmp_path, [[result(name) for name in names]])
    tonight = [result(name, Verdict.FAIL if name == "kernel-4" else Verdict.PASS, diagnosis="a bug") for name in names]
    found = compare([run(*tonight, night=9)], earlier, (), [], today=TODAY)
    assert said(found) == [("regression", "kernel-4")]
    assert "a bug" in found.statuses[0].message


def test_other_devices_and_parts_are_other_subjects(tmp_path: Path) -> None:
    earlier = before(tmp_path, [[PASS]])
    on_gpu = run(replace(FAIL, device="cuda"), night=9)
    assert said(compare([on_gpu], earlier, (), [], today=TODAY)) == [("new failure", "mine"), ("lost", "mine")]
    other = run(FAIL, night=9, label="other")
    assert said(compare([other], earlier, (), [], today=TODAY)) == [("new failure", "mine")]


@pytest.mark.parametrize(("earlier", "status"), [(Verdict.PASS, ["regression"]), (Verdict.FAIL, []), (None, [])])
def test_a_survivor_is_news_only_if_it_died_before(earlier: Verdict | None, status: list[str], tmp_path: Path) -> None:
    nights = [] if earlier is None else [[result("a mutant", earlier, covered=True)]]
    tonight = run(result("a mutant", Verdict.FAIL, covered=True), night=9)
    assert [one for one, _ in said(compare([tonight], before(tmp_path, nights), (), [], today=TODAY))] == status


def drift(**changes: object) -> Drift:
    values: dict[str, object] = {
        "label": "kernels",
        "part": "kernels",
        "subject": "mine",
        "device": "cpu",
        "machine": "m",
    }
    values |= {"metric": "max_diff", "nights": 40, "before": 1.0, "now": 2.0, "p_step": 0.0, "p_trend": 0.0, "p": 0.0}
    return Drift(**{**values, **changes})  # type: ignore[arg-type]  # the fields' types are those of the tests


@pytest.mark.parametrize(
    ("one", "entries", "statuses", "code"),
    [
        (drift(drifted=True), (), ["drift"], 1),
        (drift(), (), [], 0),
        (drift(changed=True), (), ["changed"], 0),
        (drift(drifted=True, subject="gone"), (), [], 0),
        (drift(drifted=True), (replace(KNOWN, check="drift:max_diff"),), ["known"], 0),
        (drift(), (replace(KNOWN, check="drift:max_diff"),), ["unexpected pass"], 1),
    ],
)
def test_drift(one: Drift, entries: tuple[Entry, ...], statuses: list[str], code: int, tmp_path: Path) -> None:
    found = compare([run(PASS, night=9)], before(tmp_path, [[PASS]]), entries, [one], today=TODAY)
    assert [status for status, _ in said(found)] == statuses
    assert exit_code(found.statuses) == code


@pytest.mark.parametrize(
    ("several", "code"), [(["lost", "regression"], 1), (["bad options", "broken"], 3), (["known"], 0)]
)
def test_the_worst_status_gives_the_exit_code(several: list[str], code: int) -> None:
    assert exit_code([Status(label="", subject="", device="", status=one) for one in several]) == code


def test_a_later_night_does_not_count(tmp_path: Path) -> None:
    with History.open(tmp_path / "h.sqlite") as history:
        for number, one in enumerate([PASS, FAIL]):
            history.add(night_of(run(one, night=number), night=number))
        assert known_before(history, 1).last == {("kernels", "mine", "cpu"): Verdict.PASS}
        again: Run = run(FAIL, night=1)
        assert said(compare([again], known_before(history, 1), (), [], today=TODAY)) == [("regression", "mine")]


def test_every_code_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "nightly.md").read_text(encoding="utf-8")
    assert all(f"`{status}`" in text for status in CODES)
