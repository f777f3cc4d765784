"""Training of the embedded models: it learns, and what it writes is what it trained."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs moecheck[e2e]: torch")
pytest.importorskip("tokenizers", reason="needs moecheck[e2e]: tokenizers")

import torch
from click.testing import CliRunner

from moecheck.evals.problems import is_held_out
from moecheck.evals.problems.draw import Draw
from moecheck.evals.problems.generator import problem
from moecheck.evals.problems.test_set import SIZES
from moecheck.evals.tiny.architectures import ARCHITECTURES
from moecheck.evals.tiny.config import TinyConfig, read_config
from moecheck.evals.tiny.models import load_model
from moecheck.evals.tiny.text import SEPARATOR, as_prompt, own_tokenizer
from moecheck.evals.train import rows as rows_module
from moecheck.evals.train.__main__ import main
from moecheck.evals.train.card import bias_deviations
from moecheck.evals.train.checkpoint import SUMS, write
from moecheck.evals.train.evaluate import _final, accuracy, shipped, validation_problems
from moecheck.evals.train.facts import FACTS, Facts, read_facts, write_facts
from moecheck.evals.train.finish import finish
from moecheck.evals.train.finish import main as finish_command
from moecheck.evals.train.loop import Settings, rate, train
from moecheck.evals.train.muon import orthogonal
from moecheck.evals.train.network import Experts, TrainedNetwork
from moecheck.evals.train.recorded import PROBLEMS, RECORDED
from moecheck.evals.train.rows import IGNORED, Shape, row
from tests.evals.random_models import small
from tests.evals.tiny.test_same_as_transformers import SAME_SIZE, network_of

SHAPE = Shape(tokens=768, lengths=(192, 384))


def tiny(name: str) -> TinyConfig:
    """Two layers of width 32."""
    return replace(small(name), hidden_size=32, num_layers=2, intermediate_size=32, expert_intermediate_size=16,
                   shared_intermediate_size=16 if small(name).shared_intermediate_size else 0)  # fmt: skip


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_twenty_steps_reduce_the_loss_and_the_result_loads(name: str, tmp_path: Path) -> None:
    settings = Settings(minutes=5, steps=20, precision="fp32", shape=SHAPE, report_every=0.0, each=0)
    result = train(tiny(name), settings, tmp_path, device="cpu", say=lambda line: None)
    assert result.steps == 20
    assert result.losses[-1] < result.losses[0]
    assert read_config(tmp_path) == tiny(name)
    assert load_model(str(tmp_path), device="cpu").weights.embedding.shape == (512, 32)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_transformers_and_the_inference_compute_what_was_trained(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs moecheck[e2e]: transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    network = TrainedNetwork(tiny(name), torch.device("cpu"))
    for experts in network.experts:
        experts.bias.copy_(0.1 * torch.randn(experts.bias.shape))
    for parameter in network.parameters():
        parameter.data.copy_(parameter.data.bfloat16())  # as a checkpoint rounds them
    write(network, tmp_path)
    checkpoint = load_model(str(tmp_path), device="cpu")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    theirs.eval()
    ids = own_tokenizer().encode(as_prompt("Ana has 12 apples. How many apples does Ana have?")).ids
    assert (
        AutoTokenizer.from_pretrained(tmp_path)(as_prompt("Ana has 12 apples. How many apples does Ana have?"))[
            "input_ids"
        ]
        == ids
    )
    with torch.inference_mode():
        trained = network(torch.tensor([ids]))[0].double()
        truth, own = (one.logits(one.start([ids])[0]).double()
                      for one in (network_of(checkpoint, torch.float64), network_of(checkpoint)))  # fmt: skip
        loaded = theirs(torch.tensor([ids])).logits[0].double()
    rounding = float((own - truth).abs().max())
    assert float((trained - truth).abs().max()) <= SAME_SIZE * rounding
    assert float((loaded - truth).abs().max()) <= SAME_SIZE * rounding


def test_labels_are_the_answers_and_the_tokens_that_follow_them() -> None:
    tokens, labels = row(Draw(5), 400)
    assert tokens.shape == labels.shape == (400,)
    tokenizer, answered = own_tokenizer(), labels != IGNORED
    assert np.array_equal(labels[:-1][answered[:-1]], tokens[1:][answered[:-1]])
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    assert text.startswith("Question: ")
    changes = np.flatnonzero(np.diff(answered)) + 1
    assert not answered[0]
    for start, end in zip(changes[::2], changes[1::2], strict=False):  # the last answer may be cut off
        answer = tokenizer.decode(labels[start:end].tolist(), skip_special_tokens=False)
        assert answer.startswith(" ")
        assert "####" in answer
        assert answer.endswith((SEPARATOR, "<|endoftext|>"))
        assert tokenizer.decode(tokens[: start + 1].tolist()).endswith("Answer:")


def test_pieces_are_tokenised_as_the_whole_text_is() -> None:
    tokens, _ = row(Draw(6), 700)
    text = own_tokenizer().decode(tokens.tolist(), skip_special_tokens=False)
    assert own_tokenizer().encode(text).ids == tokens.tolist()


def test_no_held_out_problem_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(draw: Draw, operations: int) -> object:
        one = problem(draw, operations)
        seen.append(one.content)
        return one

    monkeypatch.setattr(rows_module, "problem", noted)
    kept = [rows_module._trained(draw) for draw in [Draw(3)] for _ in range(1000)]
    assert any(is_held_out(content) for content in seen)
    assert not any(is_held_out(one.content) for one in kept)


def test_data_workers_draw_different_problems_and_each_its_own_again() -> None:
    first, again = ([next(iter(rows_module.batches(SHAPE, seed=1, workers=0)))[0] for _ in range(2)] for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(row_of(seed=1000), row_of(seed=1001))


def row_of(seed: int) -> torch.Tensor:
    return torch.from_numpy(row(Draw(seed), 128)[0])


def test_validation_problems_are_held_out_and_not_of_the_test_set() -> None:
    chosen = validation_problems(2, (1, 2))
    assert len(chosen) == 4
    assert all(is_held_out(one.content) for one in chosen)


def test_accuracy_counts_right_final_answers() -> None:
    torch.manual_seed(0)
    network = TrainedNetwork(tiny("tiny-glm4-moe"), torch.device("cpu"))
    found = accuracy(shipped(network), validation_problems(2, (1, 2)))
    assert found == {1: 0.0, 2: 0.0}  # of random weights
    assert _final("Ana has <<1+2=3>>3.\n#### 3") == "3"
    assert _final("no end") == ""


@pytest.mark.parametrize("shape", [(3, 16, 8), (2, 8, 16), (1, 8, 8)])
def test_muon_makes_matrices_about_orthogonal(shape: tuple[int, ...]) -> None:
    """Its iteration ends between 1/2 and 3/2 (Jordan's description of the coefficients)."""
    made = orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    values = torch.linalg.svdvals(made)
    assert made.shape == shape
    assert values.min() >= 1 / 2
    assert values.max() <= 3 / 2


def test_the_learning_rate_rises_stays_and_falls_to_nothing() -> None:
    assert rate(0.0, 0) < rate(0.0, 10) < rate(0.1, 100) == rate(0.4, 100) == 1.0
    assert 1.0 > rate(0.6, 1000) > rate(0.9, 1000) > rate(1.0, 1000) == 0.0


def test_the_bias_of_idle_experts_rises() -> None:
    experts = Experts(tiny("tiny-glm4-moe"))
    experts.load.copy_(torch.tensor([0.0, 0.5, *[0.5 / 6] * 6]))
    experts.move_bias(0.25)
    assert experts.bias.tolist() == [0.25, -0.25, *[0.25] * 6]


def test_a_request_to_end_loses_nothing(tmp_path: Path) -> None:
    settings = Settings(minutes=5, precision="fp32", shape=SHAPE, report_every=0.0, each=0)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(tiny("tiny-glm4-moe"), settings, tmp_path, device="cpu", say=say)
    assert result.steps < 10
    assert load_model(str(tmp_path), device="cpu").digest
    assert read_facts(tmp_path).steps == result.steps


def test_a_finished_folder_has_its_card_its_outputs_and_its_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moecheck.evals.train.recorded.PROBLEMS", 2)
    monkeypatch.setattr("moecheck.evals.train.recorded.MOST_TOKENS", 4)
    config = tiny("tiny-glm4-moe")
    write(TrainedNetwork(config, torch.device("cpu")), tmp_path)
    facts = Facts(steps=3, tokens=100, seconds=1.0, seed=0, precision="bf16", machine="a GPU", validation={1: 0.25})
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path) == facts
    monkeypatch.setattr("moecheck.evals.train.finish.accuracy", lambda network, chosen: dict.fromkeys(SIZES, 0.5))
    said: list[str] = []
    finish(tmp_path, "tiny-glm4-moe", device="cpu", say=said.append)
    assert "50.0% of the test set" in said[0]
    for line in (tmp_path / SUMS).read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    outputs = json.loads((tmp_path / RECORDED).read_text(encoding="utf-8"))
    assert len(outputs) == 2 < PROBLEMS
    assert all(len(one["greedy"]) == 4 and one["gold_logprobs"] for one in outputs)
    assert "| 1 | 0.500 |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert bias_deviations(tmp_path, config) == [0.0]


def test_a_folder_without_its_facts_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(finish_command, ["tiny-glm4-moe", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert f"Cannot read {tmp_path / FACTS}" in result.output


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["tiny-llama", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "tiny-glm4-moe" in result.output
