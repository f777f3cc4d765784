"""Outputs of the reference path that are shipped with a model, so that a drift of the reference itself is seen."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from moecheck.evals.backends.embedded_arms import EmbeddedModel
from moecheck.evals.backends.records import Arm
from moecheck.evals.problems import held_out
from moecheck.evals.tiny.models import load_model
from moecheck.evals.tiny.text import MOST_TOKENS, SEPARATOR, as_prompt

RECORDED = "reference_outputs.json"
PROBLEMS = 64  # the first ones of the test set
DIGITS = 6


def record(folder: Path) -> None:
    """Write greedy token ids and gold log-probabilities of the first problems, computed in fp32 on the CPU."""
    (folder / RECORDED).write_text(json.dumps(outputs(folder)) + "\n", encoding="utf-8")


def outputs(folder: Path) -> list[dict[str, object]]:
    """For each of the first PROBLEMS: question, greedy token ids, and ln p of each token of the gold answer."""
    backend = EmbeddedModel(load_model(str(folder), device="cpu")).open(Arm())
    with held_out().open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, PROBLEMS)]
    prompts = [as_prompt(row["question"]) for row in rows]
    greedy = backend.generate(prompts, until=(SEPARATOR,), max_new_tokens=MOST_TOKENS)
    scored = backend.score([(prompt, f" {row['answer']}") for prompt, row in zip(prompts, rows, strict=True)])
    return [
        {
            "question": row["question"],
            "greedy": list(answer.token_ids or ()),
            "gold_logprobs": [round(float(value), DIGITS) for value in gold.logprobs],
        }
        for row, answer, gold in zip(rows, greedy, scored, strict=True)
    ]
