"""The little of OpenAI's completions protocol that is needed, over http with the standard library.

Endpoints: GET /health or /v1/models, POST /v1/completions (vLLM, SGLang, TensorRT-LLM, llama.cpp, transformers serve).
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moecheck.errors import UsageError
from moecheck.json_text import loads
from moecheck.typed import fits

from .records import Timing

ATTEMPTS = 3


class ServerGone(UsageError):
    """A server that does not answer any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One completion: text, OpenAI's finish reason, log-probabilities as the server gave them, and when it came."""

    text: str
    finish: str
    logprobs: Mapping[str, Any] | None
    timing: Timing | None


class Client:
    """Of one server. url: with or without /v1. timeout: seconds without a byte before a request is given up."""

    def __init__(self, url: str, *, timeout: float = 600.0) -> None:
        self.base = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._timeout = timeout

    def healthy(self) -> bool:
        """Whether it says so or lists its models; a server that is still loading refuses or gives an error.

        Either is enough: transformers serve cannot list models without a network, and not all have /health.
        """
        for path in ("/health", "/v1/models"):
            try:
                with urllib.request.urlopen(f"{self.base}{path}", timeout=min(self._timeout, 10.0)) as response:
                    if response.status == 200:
                        return True
            except (OSError, http.client.HTTPException):
                continue
        return False

    def models(self) -> list[str]:
        """Ids of the models that it serves; raises ServerGone where it does not answer."""
        try:
            data = self._get("/v1/models")
            return [str(model["id"]) for model in data["data"]]
        except urllib.error.HTTPError as error:
            raise UsageError(
                f"{self.base} does not list its models (error {error.code}); name one with --served-model."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerGone(f"No server answers at {self.base}: {_reason(error)}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{self.base}/v1/models is not what an OpenAI-compatible server says: {error}.") from error

    def complete(self, body: Mapping[str, Any]) -> Completion:
        """One completion, streamed if the body says so and the server does.

        Raises UsageError for a request that the server refuses, and ServerGone after several attempts without answer.
        """
        for attempt in range(ATTEMPTS):
            try:
                return self._complete(body)
            except urllib.error.HTTPError as error:
                text = error.read().decode("utf-8", errors="replace")[:300]
                if error.code < 500 and error.code != 429:
                    raise UsageError(f"{self.base} refuses a completion ({error.code}): {text}") from error
                problem = f"error {error.code}: {text}"
            except (OSError, ValueError, http.client.HTTPException) as error:
                problem = _reason(error)
            if attempt + 1 < ATTEMPTS:
                time.sleep(0.5 * 2**attempt)
        raise ServerGone(f"{self.base} stopped answering ({problem}).")

    def _complete(self, body: Mapping[str, Any]) -> Completion:
        request = urllib.request.Request(
            f"{self.base}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Accept": "text/event-stream, application/json"},
        )
        start = time.monotonic()
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
            if "text/event-stream" not in response.headers.get("Content-Type", ""):
                choice = _choice(loads(response.read()))
                total = time.monotonic() - start
                if choice is None:
                    raise ValueError("an answer without choices")
                return Completion(
                    text=choice["text"] or "",
                    finish=choice["finish_reason"] or "stop",
                    logprobs=choice["logprobs"],
                    timing=Timing(first_token=total, total=total),
                )
            texts, arrivals, finish = [], [], ""
            for event in _events(response):
                if "error" in event:
                    raise OSError(str(event["error"])[:200])
                choice = _choice(event)
                if choice is not None:
                    if choice["text"]:
                        texts.append(choice["text"])
                        arrivals.append(time.monotonic() - start)
                    finish = choice["finish_reason"] or finish
            if not finish:
                raise OSError("the stream ended before the answer did")
        total = time.monotonic() - start
        timing = Timing(first_token=arrivals[0] if arrivals else total, total=total, arrivals=tuple(arrivals))
        return Completion(text="".join(texts), finish=finish, logprobs=None, timing=timing)

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.base}{path}", timeout=min(self._timeout, 10.0)) as response:
            return loads(response.read())


def _events(response: Any) -> Iterator[dict[str, Any]]:
    """Server-sent events up to [DONE]."""
    for line in response:
        text = line.decode("utf-8").strip()
        if text.startswith("data:"):
            data = text.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            event = loads(data)
            if not isinstance(event, dict):
                raise ValueError(f"an event that is no object: {str(event)[:80]}")
            yield event


def _choice(answer: Any) -> dict[str, Any] | None:
    """The first choice of an answer with all of its keys, None where it has none; ValueError where it is no answer."""
    kinds = {"text": str | None, "finish_reason": str | None, "logprobs": dict[str, Any] | None}
    choices = answer.get("choices", []) if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError(f"no answer of an OpenAI-compatible server: {str(answer)[:80]}")
    if not choices:
        return None
    found = {name: choices[0].get(name) for name in kinds}
    for name, kind in kinds.items():
        if not fits(found[name], kind):
            raise ValueError(f"no answer of an OpenAI-compatible server: its {name} is {str(found[name])[:80]}")
    return found


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    return str(inner or error) or type(error).__name__
