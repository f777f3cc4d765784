"""Answers kept as they come, so that a killed run goes on: one JSON line for each batch that an arm finished.

A batch is found again by the arm's fingerprint and everything it was given, so another model, kernel or batch
composition never gets its answers; lm-eval's own cache knows neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecheck.errors import UsageError
from moecheck.evals.backends.backend import Backend, ScoredPair
from moecheck.evals.backends.records import Fingerprint, Generation, Scored, Timing
from moecheck.json_text import loads
from moecheck.typed import check_types


class Journal:
    """answers.jsonl of one report folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[dict[str, Any]]] = {}
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
        for line in text.split("\n"):
            try:
                entry = loads(line)
                key, answers = str(entry["key"]), list(entry["answers"])
                for answer in answers:
                    _scored(answer) if "logprobs" in answer else _generation(answer)
                self._known[key] = answers
            except (ValueError, KeyError, TypeError, IndexError, OverflowError):
                continue  # a line that a kill cut off, or that somebody else wrote

    def get(self, key: str) -> list[dict[str, Any]] | None:
        return self._known.get(key)

    def put(self, key: str, arm: str, answers: list[dict[str, Any]]) -> None:
        """Keep one batch; in the file before this returns."""
        self._known[key] = answers
        try:
            with self._path.open("a", encoding="utf-8") as file:
                # A kill may have cut the last line off: begin on a line of one's own.
                file.write("\n" + json.dumps({"key": key, "arm": arm, "answers": answers}) + "\n")
        except OSError as error:
            raise UsageError(f"Cannot write {self._path}: {error.strerror}.") from error


class Journalled:
    """A backend whose finished batches are looked up first. `replayed`: batches that were found."""

    def __init__(self, backend: Backend, journal: Journal) -> None:
        self.backend, self._journal, self.replayed = backend, journal, 0

    @property
    def fingerprint(self) -> Fingerprint:
        return self.backend.fingerprint

    def encode(self, text: str) -> tuple[int, ...]:
        return self.backend.encode(text)

    def generate(self, prompts: Sequence[str], *, until: Sequence[str], max_new_tokens: int) -> list[Generation]:
        key = self._key("generate", [list(prompts), list(until), max_new_tokens])
        known = self._journal.get(key)
        if known is not None:
            self.replayed += 1
            return [_generation(entry) for entry in known]
        answers = self.backend.generate(prompts, until=until, max_new_tokens=max_new_tokens)
        self._journal.put(key, self.fingerprint.arm, [_plain(answer) for answer in answers])
        return answers

    def score(self, pairs: Sequence[ScoredPair], *, rows: bool = False) -> list[Scored]:
        if rows:  # a vocabulary for each token: too much to keep, and quickly made again
            return self.backend.score(pairs, rows=True)
        key = self._key("score", [list(pair) for pair in pairs])
        known = self._journal.get(key)
        if known is not None:
            self.replayed += 1
            return [_scored(entry) for entry in known]
        scored = self.backend.score(pairs)
        kept = [
            {
                "token_ids": list(one.token_ids),
                "logprobs": one.logprobs.tolist(),
                "top1": None if one.top1 is None else one.top1.tolist(),
            }
            for one in scored
        ]
        self._journal.put(key, self.fingerprint.arm, kept)
        return scored

    def close(self) -> None:
        self.backend.close()

    def _key(self, kind: str, given: object) -> str:
        text = json.dumps([self.fingerprint.key, kind, given])
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(answer: Generation) -> dict[str, Any]:
    timing = answer.timing
    return {
        "text": answer.text,
        "finish": answer.finish,
        "token_ids": None if answer.token_ids is None else list(answer.token_ids),
        "timing": None if timing is None else [timing.first_token, timing.total, list(timing.arrivals)],
    }


def _generation(entry: dict[str, Any]) -> Generation:
    ids, timing = entry["token_ids"], entry["timing"]
    generation = Generation(
        text=entry["text"],
        finish=entry["finish"],
        token_ids=None if ids is None else tuple(ids),
        timing=None if timing is None else Timing(first_token=timing[0], total=timing[1], arrivals=tuple(timing[2])),
    )
    check_types(generation)
    return generation


def _scored(entry: dict[str, Any]) -> Scored:
    top1 = entry["top1"]
    return Scored(
        token_ids=tuple(entry["token_ids"]),
        logprobs=np.asarray(entry["logprobs"], dtype=np.float64),
        top1=None if top1 is None else np.asarray(top1, dtype=np.int32),
    )
