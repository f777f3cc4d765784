"""A backend without a model: its answers are a function of the prompt, so that tests know what to expect."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from moecheck.evals.backends.backend import ScoredPair
from moecheck.evals.backends.records import Fingerprint, Generation, Scored

VOCABULARY = 40


class FakeBackend:
    """Answers by a function; scores by a table of log-probabilities that `shift` moves.

    batches: every call's prompts.
    """

    def __init__(self, answer: Callable[[str], str], *, name: str = "fake", shift: float = 0.0) -> None:
        self._answer, self._shift, self._name = answer, shift, name
        self.batches: list[tuple[str, ...]] = []
        self.closed = 0

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(model="fake", arm=self._name, code="0")

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(byte % VOCABULARY for byte in text.encode())

    def generate(self, prompts: Sequence[str], *, until: Sequence[str], max_new_tokens: int) -> list[Generation]:
        self.batches.append(tuple(prompts))
        answers = []
        for prompt in prompts:
            text = self._answer(prompt)
            for stop in until:
                text = text.split(stop)[0]
            answers.append(Generation(text=text, finish="stop", token_ids=self.encode(text)))
        return answers

    def score(self, pairs: Sequence[ScoredPair], *, rows: bool = False) -> list[Scored]:
        found = []
        for context, continuation in pairs:
            ids = self.encode(continuation)
            seed = int.from_bytes(hashlib.sha256((context + continuation).encode()).digest()[:4], "big")
            logits = np.random.default_rng(seed).normal(size=(len(ids), VOCABULARY))
            logits[:, 0] += self._shift
            table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            found.append(
                Scored(
                    token_ids=ids,
                    logprobs=table[np.arange(len(ids)), list(ids)],
                    rows=table.astype(np.float32) if rows else None,
                    top1=table.argmax(axis=1).astype(np.int32),
                )
            )
        return found

    def close(self) -> None:
        self.closed += 1
