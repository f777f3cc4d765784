"""Greedy decoding of a batch whose composition is a function of its prompts and answers alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from .attention import Cache
from .network import Network

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Pieces:
    """The text of each token by itself; special tokens have none. Exact for vocabularies of ASCII."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = set(tokenizer.get_added_tokens_decoder())
        size = tokenizer.get_vocab_size()
        self.texts = ["" if token in special else tokenizer.decode([token]) for token in range(size)]


@dataclass(slots=True)
class Answer:
    """One answer as it grows. text: of all tokens, cut at the first of the stop strings once it is found."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: Literal["stop", "length"] | None = None

    def add(self, token: int, piece: str, *, until: Sequence[str], end_token: int, limit: int) -> None:
        """One token more, unless the answer is finished."""
        if self.finish is not None:
            return
        self.token_ids.append(token)
        if token == end_token:
            self.finish = "stop"
            return
        searched = max(0, len(self.text) - max(map(len, until), default=0))
        self.text += piece
        found = [place for place in (self.text.find(stop, searched) for stop in until) if place >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.finish = "stop"
        elif len(self.token_ids) >= limit:
            self.finish = "length"


def batch_sizes(rows: int) -> list[int]:
    """Sizes that a batch may shrink to as its answers finish, descending: 65, 49, 33, 17 of 65.

    Few of them, so that kernels compiled per shape are compiled seldom; one above a quarter of the batch each, so that
    batches of 64 or 128 rows cross the edges of tiles.
    """
    return sorted({rows, *(rows * quarters // 4 + 1 for quarters in (1, 2, 3))} & set(range(rows + 1)), reverse=True)


@torch.inference_mode()
def greedy(
    network: Network, prompts: Sequence[Sequence[int]], pieces: Pieces, *, until: Sequence[str], max_new_tokens: int
) -> list[Answer]:
    """Answers to the prompts, each ending as Backend.generate says. Prompts must not be empty.

    Finished rows stay in the batch until as many have finished that it can shrink to the next of its sizes.
    """
    until = [stop for stop in until if stop]
    if not prompts or max_new_tokens < 1:
        return [Answer() for _ in prompts]
    hidden, cache = network.start(prompts, room=max_new_tokens)
    with _one_thread():
        return _continued(network, prompts, hidden, cache, pieces, until, max_new_tokens)


def _continued(
    network: Network,
    prompts: Sequence[Sequence[int]],
    hidden: torch.Tensor,
    cache: Cache,
    pieces: Pieces,
    until: Sequence[str],
    max_new_tokens: int,
) -> list[Answer]:
    """The answers, from the final hidden states of all prompts' tokens."""
    answers = [Answer() for _ in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=hidden.device)
    tokens = _best(network, hidden[lengths.cumsum(0) - 1])
    position, longest = lengths, int(lengths.max()) + 1
    sizes, rows = batch_sizes(len(prompts))[1:], list(range(len(prompts)))
    while True:
        for row, token in zip(rows, tokens.tolist(), strict=True):
            answers[row].add(
                token, pieces.texts[token], until=until, end_token=network.config.end_token, limit=max_new_tokens
            )
        going = sum(answers[row].finish is None for row in rows)
        if not going:
            return answers
        while sizes and going <= sizes[0]:
            kept = _kept([answers[row].finish is None for row in rows], sizes.pop(0))
            index = torch.tensor(kept, device=hidden.device)
            cache.keep(index)
            tokens, position, rows = tokens[index], position[index], [rows[place] for place in kept]
        # A finished row that stays has no room behind its end: it repeats its last position.
        hidden = network.step(tokens, position, longest, cache)
        last = cache.keys.shape[3] - 1
        tokens, position = _best(network, hidden), (position + 1).clamp(max=last)
        longest = min(longest + 1, last + 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's operations on one CPU thread: a step's are too small to share.

    Where other programs want the cores too, threads that wait for each other make a step ten times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _best(network: Network, hidden: torch.Tensor) -> torch.Tensor:
    """The most probable token of each row, the lowest id among equals: [rows]."""
    return network.logits(hidden).argmax(dim=-1)


def _kept(going: Sequence[bool], size: int) -> list[int]:
    """Places of the rows that stay, ascending: all that go on, and the first of the finished ones."""
    places = [place for place, on in enumerate(going) if on]
    finished = [place for place, on in enumerate(going) if not on]
    return sorted(places + finished[: size - len(places)])
