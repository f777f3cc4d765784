"""Held-out accuracy of a network in training, by greedy decoding with the weights as they would be shipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from moecheck.evals.problems import Problem, is_held_out, problems
from moecheck.evals.problems.test_set import SEED, chosen_problems
from moecheck.evals.tiny.block import ReferenceBlock
from moecheck.evals.tiny.config import TinyConfig
from moecheck.evals.tiny.decode import Pieces, greedy
from moecheck.evals.tiny.models import load_model
from moecheck.evals.tiny.network import Network
from moecheck.evals.tiny.text import MOST_TOKENS, SEPARATOR, as_prompt, own_tokenizer
from moecheck.evals.tiny.weights import MoEWeights, TinyWeights, assembled

from .checkpoint import tensors
from .network import TrainedNetwork

BATCH = 256


@cache
def validation_problems(each: int, operations: tuple[int, ...]) -> tuple[Problem, ...]:
    """So many held-out problems of each number of operations, none of which is in the test set."""
    tested = {one.content for one in chosen_problems()}
    left, chosen = Counter(dict.fromkeys(operations, each)), []
    for one in problems(SEED + 2, operations=operations):
        if left[one.operations] and is_held_out(one.content) and one.content not in tested:
            left[one.operations] -= 1
            chosen.append(one)
            if not left.total():
                break
    return tuple(chosen)


def shipped(network: TrainedNetwork) -> Network:
    """The inference of the network's weights, rounded as in a checkpoint, on its device."""
    weights = {name: tensor.float() for name, tensor in tensors(network).items()}
    return _network(assembled(weights, network.config), network.config)


def shipped_model(folder: Path, device: str) -> Network:
    """The inference of a folder's weights."""
    checkpoint = load_model(str(folder), device=device)
    return _network(checkpoint.weights, checkpoint.config)


def accuracy(network: Network, chosen: Sequence[Problem]) -> dict[int, float]:
    """Share of right final answers by number of operations; batches of BATCH problems."""
    tokenizer = own_tokenizer()
    prompts = [tokenizer.encode(as_prompt(one.question)).ids for one in chosen]
    answers = [
        answer
        for start in range(0, len(prompts), BATCH)
        for answer in greedy(
            network,
            prompts[start : start + BATCH],
            Pieces(tokenizer),
            until=(SEPARATOR,),
            max_new_tokens=MOST_TOKENS,
        )
    ]
    right: Counter[int] = Counter()
    for one, answer in zip(chosen, answers, strict=True):
        right[one.operations] += _final(answer.text) == _final(one.answer)
    total = Counter(one.operations for one in chosen)
    torch.cuda.empty_cache()
    return {operations: right[operations] / count for operations, count in sorted(total.items())}


def _final(answer: str) -> str:
    """What stands behind the last ####, `` without one."""
    _, mark, value = answer.rpartition("####")
    return value.strip() if mark else ""


def _network(weights: TinyWeights, config: TinyConfig) -> Network:
    blocks = {
        number: ReferenceBlock(layer.mlp, config, precision="fp32")
        for number, layer in enumerate(weights.layers)
        if isinstance(layer.mlp, MoEWeights)
    }
    return Network(weights, config, blocks)
