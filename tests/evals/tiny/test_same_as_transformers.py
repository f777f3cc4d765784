"""The embedded inference and transformers read one folder and compute the same."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs moecheck[e2e]: torch")
pytest.importorskip("transformers", reason="needs moecheck[e2e]: transformers")
pytest.importorskip("tokenizers", reason="needs moecheck[e2e]: tokenizers")

import torch

from moecheck.evals.tiny.architectures import ARCHITECTURES
from moecheck.evals.tiny.block import ReferenceBlock
from moecheck.evals.tiny.decode import Pieces, greedy
from moecheck.evals.tiny.models import Checkpoint, load_model
from moecheck.evals.tiny.network import Network
from moecheck.evals.tiny.text import as_prompt, own_tokenizer
from moecheck.evals.tiny.weights import MoEWeights
from tests.evals.random_models import small, write_random

PROMPTS = ("Ana has 12 apples. How many?", "A bus leaves.", "On Monday Ben works 3 hours for $20 an hour. And then?")
# Two ways to add up the same products in fp32 have errors of one size; of the largest of thousands, one is seldom more
# than twice the other.
SAME_SIZE = 4.0


def network_of(checkpoint: Checkpoint, dtype: Any = None) -> Network:
    weights = checkpoint.weights if dtype is None else _cast(checkpoint.weights, dtype)
    blocks = {
        number: ReferenceBlock(layer.mlp, checkpoint.config, precision="fp32")
        for number, layer in enumerate(weights.layers)
        if isinstance(layer.mlp, MoEWeights)
    }
    return Network(weights, checkpoint.config, blocks)


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype)
    if isinstance(value, tuple):
        return tuple(_cast(part, dtype) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _cast(getattr(value, field.name), dtype) for field in fields(value)})
    return value


@pytest.fixture(params=list(ARCHITECTURES))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_random(tmp_path / request.param, small(request.param))


def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_logits_differ_by_no_more_than_rounding(folder: Path) -> None:
    checkpoint = load_model(str(folder), device="cpu")
    model, ours, exact = theirs(folder), network_of(checkpoint), network_of(checkpoint, torch.float64)
    for prompt in PROMPTS:
        ids = own_tokenizer().encode(as_prompt(prompt)).ids
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].double()
            own, truth = (network.logits(network.start([ids])[0]).double() for network in (ours, exact))
        rounding = float((own - truth).abs().max())
        assert rounding > 0.0
        assert float((logits - truth).abs().max()) <= SAME_SIZE * rounding


@pytest.mark.filterwarnings("ignore")
def test_greedy_tokens_are_identical(folder: Path) -> None:
    tokenizer, model = own_tokenizer(), theirs(folder)
    prompts = [tokenizer.encode(as_prompt(prompt)).ids for prompt in PROMPTS]
    network = network_of(load_model(str(folder), device="cpu"))
    answers = greedy(network, prompts, Pieces(tokenizer), until=(), max_new_tokens=12)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            out = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert out[0, len(prompt) :].tolist() == answer.token_ids


@pytest.mark.filterwarnings("ignore")
def test_its_tokenizer_is_the_same(folder: Path) -> None:
    from transformers import AutoTokenizer

    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        assert loaded(as_prompt(prompt))["input_ids"] == own_tokenizer().encode(as_prompt(prompt)).ids
