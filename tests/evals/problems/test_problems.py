"""Generated problems: their arithmetic, their split, and the shipped files byte for byte."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from moecheck.evals.problems import few_shot, held_out, is_held_out, problems
from moecheck.evals.problems.draw import Draw
from moecheck.evals.problems.generator import KINDS, MOST_OPERATIONS, problem
from moecheck.evals.problems.story import LARGEST, calculation
from moecheck.evals.problems.test_set import HERE, SIZES, chosen_problems, files

CALCULATION = re.compile(r"<<([\d+*/-]+)=(\d+)>>(\d+)")
SOME = list(islice(problems(3), 2000))


def test_every_calculation_is_right_and_the_last_is_the_answer() -> None:
    for one in SOME:
        found = CALCULATION.findall(one.answer)
        assert len(found) == one.operations == one.answer.count("\n")
        for formula, value, repeated in found:
            left, operator, right, *percent = re.split(r"([+*/-])", formula)
            exact = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
            result = exact[operator] if operator in exact else divmod(int(left), int(right))
            if percent:
                assert percent == ["/", "100"]
                result = divmod(int(left) * int(right), 100)
            assert result in (int(value), (int(value), 0))
            assert int(value) > 0
            assert value == repeated
        assert one.answer.endswith(f"\n#### {found[-1][1]}")


def test_the_answer_follows_from_numbers_that_the_question_states() -> None:
    """No calculation uses a number from nowhere: each is stated, was calculated, or is named in the words."""
    named = {"2", "3", "4", "5", "100"}  # twice, half, one third ... and percent
    for one in SOME:
        known = set(re.findall(r"\d+", one.question)) | named | {str(one.operations)}
        for formula, value, _ in CALCULATION.findall(one.answer):
            assert set(re.findall(r"\d+", formula)) <= known, one
            known.add(value)


def test_no_slot_is_left_open_and_no_sentence_is_without_its_end() -> None:
    for one in SOME:
        text = one.question + one.answer
        assert "{" not in text
        assert "None" not in text
        assert one.question.endswith("?")
        assert all(line.endswith(".") for line in one.answer.splitlines()[:-1])
        assert max(map(int, re.findall(r"\d+", one.question))) <= LARGEST + 400


@pytest.mark.parametrize("operations", range(1, MOST_OPERATIONS + 1))
def test_a_problem_has_the_operations_that_were_asked_for(operations: int) -> None:
    draw = Draw(5)
    assert {problem(draw, operations).operations for _ in range(200)} == {operations}


def test_every_kind_gives_problems() -> None:
    draw = Draw(1)
    for kind in set(KINDS):
        assert any(kind(draw, operations) for operations in range(1, MOST_OPERATIONS + 1) for _ in range(50))


def test_equal_seeds_give_equal_problems_and_others_do_not() -> None:
    assert list(islice(problems(9), 50)) == list(islice(problems(9), 50))
    assert list(islice(problems(9), 50)) != list(islice(problems(10), 50))


def test_names_and_things_are_no_part_of_the_content() -> None:
    """Otherwise a problem of the test set could be learnt with another name in it."""
    contents = Counter(one.content for one in islice(problems(11, operations=(1,)), 4000))
    repeated = [content for content, count in contents.items() if count > 1]
    assert repeated
    questions = {one.content: one.question for one in islice(problems(11, operations=(1,)), 4000)}
    assert any(
        one.content in repeated and one.question != questions[one.content]
        for one in islice(problems(11, operations=(1,)), 4000)
    )


def test_one_content_in_fifty_is_held_out() -> None:
    share = sum(is_held_out(one.content) for one in SOME) / len(SOME)
    assert 0.01 < share < 0.03


def test_the_shipped_files_are_what_the_generator_makes() -> None:
    for name, content in files().items():
        assert (HERE / name).read_bytes() == content, f"run python -m moecheck.evals.problems: {name} is not current"


def test_the_test_set_is_held_out_without_repetition_in_the_sizes_that_are_promised() -> None:
    chosen = chosen_problems()
    assert all(is_held_out(one.content) for one in chosen)
    assert len({one.content for one in chosen}) == len(chosen) == sum(SIZES.values())
    assert Counter(one.operations for one in chosen) == SIZES


@pytest.mark.parametrize("path", [held_out(), few_shot()])
def test_a_line_has_the_keys_of_gsm8k_and_its_cluster(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(set(row) == {"question", "answer", "cluster", "operations"} for row in rows)


def test_examples_of_a_prompt_are_not_held_out() -> None:
    held = {json.loads(line)["question"] for line in held_out().read_text(encoding="utf-8").splitlines()}
    assert not held & {json.loads(line)["question"] for line in few_shot().read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize(
    ("left", "operator", "right", "text"),
    [
        (12, "+", 5, "12 + 5 = <<12+5=17>>17"),
        (12, "-", 5, "12 - 5 = <<12-5=7>>7"),
        (12, "*", 5, "12 * 5 = <<12*5=60>>60"),
        (12, "/", 4, "12 / 4 = <<12/4=3>>3"),
        (120, "%", 25, "120 * 25 / 100 = <<120*25/100=30>>30"),
    ],
)
def test_a_calculation_is_written_as_gsm8k_writes_it(left: int, operator: str, right: int, text: str) -> None:
    assert calculation(left, operator, right)[0] == text
