"""Reading, prompting, scoring and pairing, without lm-eval."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from moecheck.errors import UsageError
from moecheck.evals.backends.records import Generation
from moecheck.evals.gsm8k.answers import Answer, pair_answers, scored_answer
from moecheck.evals.gsm8k.data import Question, read_questions
from moecheck.evals.gsm8k.prompts import batches_of, prompt_of
from moecheck.evals.gsm8k.scorer import score_answer

LINE = json.dumps({"question": "How many?", "answer": "One.\n#### 1", "cluster": "counting"})


def write(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "questions.jsonl"
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def test_questions_are_numbered_and_blank_lines_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, LINE, "", LINE, LINE)
    found = read_questions(path, limit=2)
    assert [one.doc_id for one in found] == [0, 1]
    assert found[1] == Question(doc_id=1, question="How many?", answer="One.\n#### 1", cluster="counting")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        pytest.param([LINE, "{'a': 1}"], "questions.jsonl, line 2: not JSON", id="a broken line"),
        pytest.param(["[1]"], "line 1: must be a JSON object, not list", id="no object"),
        pytest.param([json.dumps({"question": "a"})], "line 1: needs the text 'answer'", id="no answer"),
        pytest.param([json.dumps({"question": 3, "answer": "#### 1"})], "needs the text 'question'", id="a number"),
        pytest.param([json.dumps({"question": "a", "answer": "1"})], "does not end in '#### NUMBER'", id="no mark"),
        pytest.param([], "has no questions", id="empty"),
        pytest.param([b"\xff\xfe"], "is no UTF-8 text", id="another encoding"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_questions(write(tmp_path, *lines))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read .*none\.jsonl: No such file"):
        read_questions(tmp_path / "none.jsonl")


def test_the_prompt_has_the_examples_in_front() -> None:
    shot = Question(doc_id=0, question="1+1?", answer="2.\n#### 2")
    asked = Question(doc_id=1, question="2+2?", answer="4.\n#### 4")
    assert prompt_of(asked, [shot]) == "Question: 1+1?\nAnswer: 2.\n#### 2\n\nQuestion: 2+2?\nAnswer:"
    assert prompt_of(asked) == "Question: 2+2?\nAnswer:"


def test_batches_hold_each_prompt_once_longest_first() -> None:
    prompts = ["aa", "a", "aaaa", "bb", "aaa"]
    assert batches_of(prompts, 2) == [(2, 4), (0, 3), (1,)]


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        pytest.param("so #### 12", True, True, id="as asked"),
        pytest.param("so #### 12.", True, True, id="a trailing dot"),
        pytest.param("#### $12", False, True, id="a dollar sign, which strict-match does not take"),
        pytest.param("it is 12", False, True, id="no mark"),
        pytest.param("#### 12 or rather 13", True, False, id="first against last"),
        pytest.param("#### 13\n#### 12", False, True, id="last against first"),
        pytest.param("#### 1,2", True, True, id="a comma"),
        pytest.param("nothing", False, False, id="nothing"),
        pytest.param("", False, False, id="empty"),
        pytest.param("12 . , $", False, True, id="a lone dot is no number"),
        pytest.param("12 ...", False, False, id="dots are"),
        pytest.param("#### -12", False, False, id="a sign"),
    ],
)
def test_scores(text: str, strict: bool, flexible: bool) -> None:
    found = score_answer(text, "Twelve.\n#### 12")
    assert (found.strict_right, found.flexible_right) == (strict, flexible)


def answer(doc_id: int, prompt: str = "p") -> Answer:
    question = Question(doc_id=doc_id, question="q", answer="#### 1")
    return scored_answer(question, prompt, Generation(text="#### 1", finish="stop"))


def test_answers_are_paired_by_question() -> None:
    pairs = pair_answers([answer(2), answer(0)], [answer(0), answer(2)])
    assert [(one.question.doc_id, two.question.doc_id) for one, two in pairs] == [(0, 0), (2, 2)]
    assert pairs[0][0].prompt_hash == hashlib.sha256(b"p").hexdigest()


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        pytest.param([answer(0)], [answer(0, "other")], "different prompts for question 0", id="prompts"),
        pytest.param([answer(0), answer(1)], [answer(0)], "candidate has no answer to question 1", id="candidate"),
        pytest.param([answer(0)], [answer(0), answer(7)], "baseline has no answer to question 7", id="baseline"),
        pytest.param([answer(0), answer(0)], [answer(0)], "baseline answered a question twice", id="twice"),
    ],
)
def test_what_is_no_pair_is_refused(one: list[Answer], two: list[Answer], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pair_answers(one, two)
