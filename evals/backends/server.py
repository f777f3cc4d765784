"""The backend of OpenAI-compatible servers: an address, or a command that starts one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from moecheck.errors import Unsupported, UsageError

from .backend import ScoredPair
from .openai_client import Client, Completion, ServerGone
from .records import Fingerprint, Generation, Scored
from .server_process import ServerProcess

MOST_STOPS = 4  # that the protocol takes


def is_url(text: str) -> bool:
    """Whether it is an address; anything else is a command."""
    return text.startswith(("http://", "https://"))


class ServerBackend:
    """One arm. where: URL or command. name: `baseline` or `candidate`. All requests of a batch are sent at once.

    served: the model's id in requests, None for the first that the server lists. log: of a command.
    """

    def __init__(
        self, where: str, *, name: str, served: str | None, log: Path, start_timeout: float, concurrency: int
    ) -> None:
        self.name, self._where, self._concurrency = name, where, concurrency
        self.process = None if is_url(where) else ServerProcess(where, name=name, log=log)
        if self.process is not None:
            self.process.start(timeout=start_timeout)
        try:
            self._client = Client(where if self.process is None else self.process.url)
            self.served = self._served(served)
        except BaseException:
            self.close()
            raise

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(model=self.served, arm=f"{self.name}: {self._where}", code="")

    def encode(self, text: str) -> tuple[int, ...]:
        raise Unsupported("needs the tokenizer, which a server keeps to itself")

    def generate(self, prompts: Sequence[str], *, until: Sequence[str], max_new_tokens: int) -> list[Generation]:
        bodies = [
            self._body(prompt, max_tokens=max_new_tokens, stop=list(until)[:MOST_STOPS], stream=True)
            for prompt in prompts
        ]
        return [_generation(completion, until) for completion in self._all(bodies)]

    def score(self, pairs: Sequence[ScoredPair], *, rows: bool = False) -> list[Scored]:
        if rows:
            raise Unsupported("a server gives no log-probabilities of a whole vocabulary")
        # As lm-eval asks: the prompt is given back with log-probabilities, and one token more is not looked at.
        bodies = [self._body("".join(pair), max_tokens=1, echo=True, logprobs=1) for pair in pairs]
        try:
            completions = self._all(bodies)
        except ServerGone:
            raise
        except UsageError as error:
            raise Unsupported(f"needs log-probabilities of prompts ({error})") from error
        return [_scored(completion, *pair) for completion, pair in zip(completions, pairs, strict=True)]

    def close(self) -> None:
        if self.process is not None:
            self.process.stop()

    def _served(self, wanted: str | None) -> str:
        if wanted is not None:
            return wanted
        known = self._client.models()
        if not known:
            raise UsageError(f"The {self.name}'s server lists no model; name it with --served-model.")
        return known[0]

    def _body(self, prompt: str, **options: Any) -> dict[str, Any]:
        return {"model": self.served, "prompt": prompt, "temperature": 0.0, "seed": 0, **options}

    def _all(self, bodies: Sequence[dict[str, Any]]) -> list[Completion]:
        try:
            with ThreadPoolExecutor(max_workers=self._concurrency) as threads:
                return list(threads.map(self._client.complete, bodies))
        except ServerGone as error:
            words = f"The {self.name}'s server died: {error}"
            if self.process is not None:
                code = self.process.exit_code
                words += "" if code is None else f" Its command ended with exit code {code}."
                words += self.process.last_words()
            raise ServerGone(words) from error


def _generation(completion: Completion, until: Sequence[str]) -> Generation:
    """Cut again at the first stop string: servers may include it."""
    text = completion.text
    places = [text.find(stop) for stop in until if stop in text]
    return Generation(
        text=text[: min(places)] if places else text,
        finish="length" if completion.finish == "length" and not places else "stop",
        timing=completion.timing,
    )


def _scored(completion: Completion, context: str, continuation: str) -> Scored:
    """The continuation's tokens: those that begin behind the context.

    A token's id is a checksum of its text, the same in both arms; ids themselves are not in the protocol.
    """
    logprobs = completion.logprobs or {}
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not tokens or not values:
        raise Unsupported("needs log-probabilities of prompts (echo), which this server does not give")
    offsets = logprobs.get("text_offset") or list(np.cumsum([0, *map(len, tokens)])[:-1])
    whole = len(context) + len(continuation)
    chosen = [i for i, offset in enumerate(offsets) if len(context) <= offset < whole and values[i] is not None]
    if not chosen:
        raise Unsupported("needs log-probabilities of prompts (echo), which this server does not give")
    tops = logprobs.get("top_logprobs")
    best = None
    if tops and all(tops[i] for i in chosen):
        best = np.array([_checksum(max(tops[i], key=tops[i].get)) for i in chosen], dtype=np.int32)
    return Scored(
        token_ids=tuple(_checksum(tokens[i]) for i in chosen),
        logprobs=np.array([values[i] for i in chosen], dtype=np.float64),
        top1=best,
    )


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) & 0x7FFFFFFF
