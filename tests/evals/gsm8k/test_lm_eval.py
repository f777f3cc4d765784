"""Our prompts, batches and scores against lm-eval's own, question by question."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs moecheck[e2e]: lm-eval")

from moecheck.evals.gsm8k.data import read_questions
from moecheck.evals.gsm8k.lm_eval_task import HarnessResult, evaluate, task_dictionary
from moecheck.evals.gsm8k.prompts import UNTIL, VERSION, batches_of, prompt_hash, prompt_of
from moecheck.evals.gsm8k.scorer import INVALID, score_answer
from tests.evals.arms import FakeBackend

PIECES = [
    "#### ", "####", "### 4", "\n", " ", "12", "-12", "1,200", "$3", "$", ".", ",", "3.50", "..", "-", "--7", "0",
    "007", "and", "Answer: ", "<<6*7=42>>42", "٣", "１２", "½", "1e5", "#### -", "#### .", "#### ,", "#### 12.",
    "#### $12",
    "%", "1.2.3", "\t", "\r\n", "#### 12\n#### 13", "İ", "\x00", "𝟙", "=", "(12)", "5/6", "#### 1 2", "9" * 30,
]  # fmt: skip
GOLDS = ["a\n#### 12", "a\n#### 1,200", "a\n#### -12", "#### 3.50", "no mark 12", "#### 12.", "x #### 1\n#### 12"]


def nasty_texts(count: int) -> list[tuple[str, str]]:
    draw = random.Random(20)
    fixed = [("", GOLDS[0]), (" ", GOLDS[0]), *((piece, gold) for piece in PIECES for gold in GOLDS)]
    drawn = [("".join(draw.choices(PIECES, k=draw.randint(1, 9))), draw.choice(GOLDS)) for _ in range(count)]
    return fixed + drawn


def lm_evals_scores(texts: list[str], golds: list[str]) -> list[tuple[str, str, bool, bool]]:
    """Through the filters and the metric that the installed task file names."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters import get_filter  # importing the package registers them

    task = task_dictionary(Path("unused"), None, 0)
    (metric,) = task["metric_list"]
    options = {name: metric[name] for name in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    columns = []
    for filters in task["filter_list"]:
        values: Any = [[text] for text in texts]
        for step in filters["filter"]:
            arguments = {name: value for name, value in step.items() if name != "function"}
            values = get_filter(step["function"])(**arguments).apply(values, [{}] * len(texts))
        columns.append(list(values))
    strict, flexible = columns
    rows = []
    for one, two, gold in zip(strict, flexible, golds, strict=True):
        right = [
            bool(exact_match_hf_evaluate(predictions=[value], references=[gold], **options)["exact_match"])
            for value in (one, two)
        ]
        rows.append((one, two, right[0], right[1]))
    return rows


def test_scores_are_lm_evals_on_nasty_texts() -> None:
    cases = nasty_texts(600)
    expected = lm_evals_scores([text for text, _ in cases], [gold for _, gold in cases])
    ours = [score_answer(text, gold) for text, gold in cases]
    found = [(one.strict, one.flexible, one.strict_right, one.flexible_right) for one in ours]
    assert found == expected
    assert len({right for *_, right in found}) == 2
    assert any(one.strict == INVALID for one in ours)


def test_the_task_is_the_one_that_we_know() -> None:
    task = task_dictionary(Path("test.jsonl"), None, 0)
    assert str(task["metadata"]["version"]) == VERSION
    assert tuple(task["generation_kwargs"]["until"]) == UNTIL


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eleven questions and three examples."""
    folder = tmp_path_factory.mktemp("gsm8k")
    for name, count in (("test", 11), ("train", 3)):
        rows = [
            {"question": f"{name} {index} {'x' * (index * 7 % 5)}?", "answer": f"It is {index}.\n#### {index}"}
            for index in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "test.jsonl", folder / "train.jsonl"


def answer_of(prompt: str) -> str:
    """Right for even questions, `#### 99` for others, and something after a stop string."""
    index = int(prompt.rsplit("Question: test ", 1)[1].split()[0])
    return f" It is so.\n#### {index if index % 2 == 0 else 99}\n\nQuestion: next 7"


@pytest.fixture(scope="module")
def run(
    files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[HarnessResult, FakeBackend, list[tuple[str, ...]]]:
    """One arm through lm-eval with two examples; and the batches that were reported."""
    test, train = files
    backend = FakeBackend(answer_of)
    reported: list[tuple[str, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        result = evaluate(
            backend,
            test=test,
            shots=train,
            num_fewshot=2,
            limit=None,
            batch_size=4,
            max_new_tokens=64,
            done=lambda prompts, answers: reported.append(tuple(prompts)),
        )
    return result, backend, reported


def test_lm_eval_asks_what_we_ask_in_the_same_batches(
    run: tuple[HarnessResult, FakeBackend, list[tuple[str, ...]]], files: tuple[Path, Path]
) -> None:
    result, backend, reported = run
    questions, shots = read_questions(files[0]), read_questions(files[1], limit=2)
    prompts = [prompt_of(question, shots) for question in questions]
    assert [sample.prompt_hash for sample in result.samples] == [prompt_hash(prompt) for prompt in prompts]
    assert backend.batches == reported
    assert backend.batches == [tuple(prompts[index] for index in batch) for batch in batches_of(prompts, 4)]


def test_lm_eval_scores_as_we_do(
    run: tuple[HarnessResult, FakeBackend, list[tuple[str, ...]]], files: tuple[Path, Path]
) -> None:
    result, _, _ = run
    for question, sample in zip(read_questions(files[0]), result.samples, strict=True):
        text = FakeBackend(answer_of).generate([prompt_of(question)], until=UNTIL, max_new_tokens=64)[0].text
        ours = score_answer(text, question.answer)
        theirs = (sample.strict, sample.flexible, sample.strict_right, sample.flexible_right)
        assert (ours.strict, ours.flexible, ours.strict_right, ours.flexible_right) == theirs
    assert sum(sample.strict_right for sample in result.samples) == 6
    assert result.results["exact_match,strict-match"] == pytest.approx(6 / 11)
    assert "exact_match" in result.table
