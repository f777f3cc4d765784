"""A model of two linear MoE layers in NumPy, with arms that round, that are wrong, or that never run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moecheck.errors import UsageError
from moecheck.evals.backends.backend import ScoredPair
from moecheck.evals.backends.records import (
    Arm,
    Evidence,
    Fingerprint,
    Generation,
    LayerCapture,
    ModelFacts,
    Precision,
    Scored,
)
from moecheck.formats import store, to_float64

FACTS = ModelFacts(
    name="fake",
    moe_layers=(0, 1),
    num_experts=8,
    top_k=2,
    hidden_size=32,
    vocab_size=64,
    routed_scaling_factor=2.5,
    shared_experts=1,
)
# Mutant -> weights of the routed and of the shared part.
MUTANTS = {"shared-0.4": (1.0, 0.4), "whole-0.4": (0.4, 0.4), "routed-1.05": (1.05, 1.0)}
KERNELS = ("good", "never-called", "ignored")


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class FakeModel:
    """opened: arms in the order in which they were opened."""

    facts = FACTS

    def __init__(self) -> None:
        H, E, V = FACTS.hidden_size, FACTS.num_experts, FACTS.vocab_size
        self.embedding = normal(V, H, seed=1)
        self.router = normal(2, E, H, seed=2) / np.sqrt(H)
        self.experts = normal(2, E, H, H, seed=3) / np.sqrt(H)
        self.shared = normal(2, H, H, seed=4) / np.sqrt(H)
        self.opened: list[FakeArm] = []

    def open(self, arm: Arm) -> FakeArm:
        if arm.kernel is not None and arm.kernel not in KERNELS:
            raise UsageError(f"Unknown kernel {arm.kernel!r}.")
        if arm.mutant is not None and arm.mutant not in MUTANTS:
            raise UsageError(f"Unknown mutant {arm.mutant!r}.")
        self.opened.append(FakeArm(self, arm))
        return self.opened[-1]

    def variants(self, precision: Precision) -> tuple[Arm, ...]:
        return (Arm(precision=precision),)

    def mutants(self) -> tuple[str, ...]:
        return tuple(MUTANTS)

    def close(self) -> None:
        pass


class FakeArm:
    """asked: number of batches that were really generated."""

    def __init__(self, model: FakeModel, arm: Arm) -> None:
        self._model, self._arm = model, arm
        self._alpha, self._beta = MUTANTS[arm.mutant] if arm.mutant else (1.0, 1.0)
        self._calls = dict.fromkeys(FACTS.moe_layers, 0)
        self.asked = 0

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(model="fake", arm=self._arm.words, code="0")

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(byte % FACTS.vocab_size for byte in text.encode())

    def generate(self, prompts: Sequence[str], *, until: Sequence[str], max_new_tokens: int) -> list[Generation]:
        """The number of the question, but for a share of the questions that grows with the arm's error."""
        self.asked += 1
        answers = []
        for prompt in prompts:
            number = prompt.rpartition("number ")[2].rpartition("?")[0]
            chance = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:2], "big") / 2**16
            if chance < abs(self._alpha - 1) + abs(self._beta - 1) / 2:
                number += "0"
            text = f" It is {number}.\n#### {number}"
            answers.append(Generation(text=text, finish="stop", token_ids=self.encode(text)))
        return answers

    def score(self, pairs: Sequence[ScoredPair], *, rows: bool = False) -> list[Scored]:
        found = []
        for context, continuation in pairs:
            gold = self.encode(continuation)
            hidden = self._forward(self.encode(context + continuation)[: -1 if gold else None])[-1]
            logits = hidden[-len(gold) :] @ self._model.embedding.T / 4
            table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            logprobs = table[np.arange(len(gold)), list(gold)]
            found.append(Scored(token_ids=gold, logprobs=logprobs, rows=table.astype(np.float32) if rows else None))
        return found

    def capture(self, pairs: Sequence[ScoredPair]) -> list[LayerCapture]:
        ids = tuple(number for pair in pairs for number in self.encode("".join(pair)))
        states = self._forward(ids)
        return [self._block(layer, states[layer]) for layer in FACTS.moe_layers]

    def replay(self, layer: int, hidden: LayerCapture) -> LayerCapture:
        return self._block(layer, hidden.hidden)

    def evidence(self, pairs: Sequence[ScoredPair]) -> Evidence:
        seen = self._arm.kernel != "ignored"
        return Evidence(calls=dict(self._calls), watermark=dict.fromkeys(FACTS.moe_layers, seen))

    def close(self) -> None:
        pass

    def _forward(self, ids: Sequence[int]) -> list[np.ndarray]:
        states = [self._model.embedding[list(ids)].astype(np.float32)]
        for layer in FACTS.moe_layers:
            states.append(states[-1] + self._block(layer, states[-1]).output)
        return states

    def _block(self, layer: int, hidden: np.ndarray) -> LayerCapture:
        model = self._model
        if self._arm.kernel != "never-called":
            self._calls[layer] += 1
        x = self._rounded(hidden)
        logits = hidden.astype(np.float64) @ model.router[layer].T
        order = np.argsort(-logits, axis=1, kind="stable")
        ids = order[:, : FACTS.top_k].astype(np.int32)
        chosen = np.take_along_axis(logits, ids, axis=1)
        weights = np.exp(chosen - chosen.max(axis=1, keepdims=True))
        weights = 2.5 * weights / weights.sum(axis=1, keepdims=True)
        slots = np.einsum("tkhi,ti->tkh", model.experts[layer][ids], x)
        routed = self._alpha * self._rounded(np.einsum("tk,tkh->th", weights, slots))
        shared = self._beta * self._rounded(x @ model.shared[layer].T)
        gap = np.take_along_axis(logits, order[:, FACTS.top_k - 1 : FACTS.top_k + 1], axis=1)
        capture = LayerCapture(
            layer=layer,
            hidden=hidden.astype(np.float32),
            output=self._rounded(routed + shared).astype(np.float32),
            topk_ids=ids,
            topk_weights=weights.astype(np.float32),
            routed=routed.astype(np.float32),
            shared=shared.astype(np.float32),
            choice_gap=(gap[:, 0] - gap[:, 1]).astype(np.float32),
        )
        return capture if self._arm.kernel is None else replace(capture, routed=None, shared=None)

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        if self._arm.precision in ("fp16", "bf16"):
            return to_float64(store(np.asarray(values, dtype=np.float64), self._arm.precision))
        return np.asarray(values, dtype=np.float64)
