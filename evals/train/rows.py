"""Training rows: generated problems one after the other, tokenised and packed, with labels on the answers only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from moecheck.evals.problems import Problem, is_held_out
from moecheck.evals.problems.draw import Draw
from moecheck.evals.problems.generator import problem
from moecheck.evals.tiny.text import END, SEPARATOR, as_prompt, own_tokenizer

IGNORED = -100
# The longer ones are harder, and rarer among those that a row holds to their end.
OPERATIONS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6)
ENDED = 0.3  # share of problems that END follows, and not another one
Rows = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """tokens: of a batch. lengths: of its rows, drawn for each batch; the longest hold a prompt with five examples."""

    tokens: int = 81_920
    lengths: tuple[int, ...] = (512, 512, 512, 512, 1536)


class Packed(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Endless batches; worker w of process seed s draws from seed s * 1000 + w. Held-out problems are left out."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.seed = shape, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = get_worker_info()
        draw = Draw(self.seed * 1000 + (0 if info is None else info.id))
        while True:
            length = draw.pick(self.shape.lengths)
            count = max(1, self.shape.tokens // length)
            rows, labels = (np.stack(part) for part in zip(*(row(draw, length) for _ in range(count)), strict=True))
            yield torch.from_numpy(rows), torch.from_numpy(labels)


def row(draw: Draw, length: int) -> tuple[Rows, Rows]:
    """Tokens [length] and labels [length]: at each place the next token, IGNORED where that is no part of an answer."""
    tokenizer = own_tokenizer()
    end, between = tokenizer.token_to_id(END), tokenizer.encode(SEPARATOR).ids
    tokens: list[int] = []
    answered: list[bool] = []
    while len(tokens) <= length:
        one = _trained(draw)
        asked, answer = (encoded.ids for encoded in tokenizer.encode_batch([as_prompt(one.question), f" {one.answer}"]))
        answer = [*answer, *([end] if draw.chance(ENDED) else between)]
        tokens += asked + answer
        answered += [False] * len(asked) + [True] * len(answer)
    array = np.array(tokens[: length + 1], dtype=np.int16)
    labels = np.where(answered[1 : length + 1], array[1:], np.int16(IGNORED))
    return array[:-1], labels


def batches(shape: Shape, *, seed: int, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and labels, [rows, length] int16 each, made by so many processes (0: by this one)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loader = DataLoader(
        Packed(shape, seed),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def _trained(draw: Draw) -> Problem:
    while True:
        one = problem(draw, draw.pick(OPERATIONS))
        if not is_held_out(one.content):
            return one
