"""The score's arithmetic, the checker's mutants, and the document."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moecheck.mutants import all_mutants
from moecheck.mutants.bugs import known_bugs, sources_of
from moecheck.report.mutants import markdown, publish
from moecheck.report.mutants_document import document
from moecheck.report.mutants_view import score_view
from moecheck.report.terminal import render
from moecheck.scoring.checker import checker_mutants, checker_trial, planted
from moecheck.scoring.result import Alarms, Cell, Limits, MutantScore, Score
from moecheck.scoring.self_test import items, self_test
from moecheck.scoring.sources import SOURCE_MUTANTS

KILLED = MutantScore(id="a", kind="routing", words="one", ops=("x", "y"), seeds=20, caught={"x": 20, "y": 19},
                     checks=("values",), expected=("values",))  # fmt: skip
MISSED = MutantScore(id="b", kind="shared", words="two", ops=("x", "y"), seeds=20, caught={"x": 20, "y": 18}, why="so")
EQUAL = MutantScore(id="c", kind="shared", words="three", ops=("x",), seeds=20, equivalent="it is the same")


def score(*mutants: MutantScore, **more: object) -> Score:
    return Score(profile="default", seeds=20, command="moecheck mutants", mutants=mutants, **more)  # type: ignore[arg-type]


def test_a_mutant_is_killed_where_95_percent_of_the_seeds_see_it_in_every_op() -> None:
    assert (KILLED.p_kill, KILLED.killed) == (0.95, True)
    assert (MISSED.p_kill, MISSED.survived) == (0.9, True)
    assert not EQUAL.killed
    assert not EQUAL.survived


def test_equivalent_mutants_do_not_count_and_classes_count_alike() -> None:
    found = score(KILLED, MISSED, EQUAL)
    assert found.overall == 0.5
    assert found.macro == 0.5
    assert score(KILLED, EQUAL).macro == 1.0
    assert score(KILLED, KILLED, KILLED, MISSED).macro == 0.5
    assert found.unique_kills == {"values": 1}


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        (score(KILLED, EQUAL), True),
        (score(KILLED, MISSED), False),
        (score(KILLED, alarms=(Alarms(name="bf16", trials=3, variants=3, alarms=("x",)),)), False),
        (score(KILLED, baselines={"a kernel": "was accused"}), False),
        (score(KILLED, MutantScore(id="d", kind="shared", words="", equivalent="no", differed=True)), False),
    ],
    ids=["all killed", "a survivor", "a false alarm", "an accused kernel", "a false claim of equivalence"],
)
def test_what_fails_a_run(found: Score, passed: bool) -> None:
    assert found.passed is passed


def test_kernels_that_declare_nothing_are_counted_by_themselves() -> None:
    both = {"x": 5, "y": 5}
    seen = replace(KILLED, undeclared=both, undeclared_seeds=5)
    unseen = replace(KILLED, id="d", undeclared={**both, "y": 4}, undeclared_seeds=5)
    found = score(seen, unseen, KILLED, MISSED, replace(EQUAL, undeclared={"x": 0}, undeclared_seeds=5))
    assert [one.seen_undeclared for one in found.mutants] == [True, False, None, None, None]
    assert found.undeclared() == (1, 2)
    assert found.undeclared("shared") == (0, 0)
    assert found.to_json()["unseen_undeclared"] == ["d"]
    for text in (render(score_view(found, width=120), width=120, color=False), markdown(found)):
        assert "1 of 2" in text or "50 %" in text
        assert "only in kernels whose contract is" in text


def test_what_is_published_is_short_and_read_back_by_the_document(tmp_path: Path) -> None:
    found = score(KILLED, MISSED, EQUAL, cpu_by_part={"mutants": 12.0})
    publish(tmp_path / "mutants", found)
    text = (tmp_path / "mutants" / "mutants.md").read_text(encoding="utf-8")
    assert "## Survivors" in text
    assert "Every mutant" not in text
    assert json.loads((tmp_path / "mutants" / "mutants.json").read_text(encoding="utf-8"))["survivors"] == ["b"]
    assert "### Survivors" in document(text)
    assert "## Measured: FAILED" in document(text)


def test_views_name_the_survivor_and_the_numbers() -> None:
    found = score(
        KILLED,
        MISSED,
        EQUAL,
        alarms=(Alarms(name="bf16", trials=320, variants=300),),
        limits=(Limits(name="bf16", factor=2.0**-10, sigmas=11.0, elements=64),),
        coverage=(
            Cell(routing="softmax", activation="silu", quantisation="bf16", plumbing="plain", cases=3, died=("a",)),
        ),
    )
    for text in (render(score_view(found, width=120), width=120, color=False), markdown(found)):
        assert "two" in text
        assert "320" in text
        assert "3/1" in text
    assert "1 of 2 mutants killed (50 %; the bar is 95 %), 0 false alarms on 320 correct kernels" in render(
        score_view(found, width=200), width=200, color=False
    )
    assert found.to_json()["survivors"] == ["b"]


def test_the_checker_as_it_is_tells_right_from_wrong() -> None:
    assert self_test() == []
    kinds = [item.kind for item in items()]
    assert min(kinds.count(kind) for kind in ("right", "wrong")) >= 10
    assert "nothing" in kinds


@pytest.mark.parametrize("one", checker_mutants(), ids=lambda one: one.name)
def test_a_broken_checker_is_noticed(one: object) -> None:
    name = one.name  # type: ignore[attr-defined]  # a CheckerMutant
    found = checker_trial(name)
    assert isinstance(found, MutantScore)
    assert found.killed, name


def test_a_planted_bug_is_taken_out_again() -> None:
    from moecheck import metrics

    before = metrics.abs_err
    with planted(checker_mutants()[0]):
        assert metrics.abs_err is not before
    assert metrics.abs_err is before


def test_every_bug_is_a_mutant_or_says_why_not() -> None:
    names = {name for one in all_mutants() for name in (one.id, one.name)}
    names |= {one.name for one in SOURCE_MUTANTS} | {one.name for one in checker_mutants()}
    for bug in known_bugs():
        assert bool(bug.mutants) != bool(bug.why), bug
        assert set(bug.mutants) <= names, bug
    with_source = [one for one in all_mutants() if sources_of(one.id, one.sources)]
    assert len(with_source) >= 90


def test_the_document_is_up_to_date() -> None:
    root = Path(__file__).parents[2]
    measured = root / "reports" / "mutants" / "mutants.md"
    expected = document(measured.read_text(encoding="utf-8") if measured.exists() else "")
    text = (root / "docs" / "mutants.md").read_text(encoding="utf-8")
    assert text == expected, "run python tools/write_mutants_document.py"
