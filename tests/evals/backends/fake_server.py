"""A completions server whose answers are a function of the prompt; as a command: python fake_server.py --port N."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer(ThreadingHTTPServer):
    """wrong: share of the questions answered wrongly. shift: size of the change of log-probabilities.

    echo: whether prompts have them. noise: whether they change from request to request. stream: whether it streams.
    slow: seconds before each answer. die_after: completions after which the process exits, if it `exits`, or the server
    answers no more.
    """

    daemon_threads = True

    def __init__(self, port: int = 0, **options: Any) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.options: dict[str, Any] = {
            "wrong": 0.0, "shift": 0.0, "echo": True, "die_after": None, "noise": False, "stream": True, "exits": False,
            "slow": 0.0,
            "models": {"object": "list", "data": [{"id": "fake-moe"}]},
        } | options  # fmt: skip
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        models = self.server.options["models"]
        if self.path == "/health" or models is None:
            self._json({}, 404 if self.path == "/health" else 500)
        else:
            self._json(models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        options = self.server.options
        with self.server.lock:
            self.server.requests.append(body)
            if options["die_after"] is not None and len(self.server.requests) > options["die_after"]:
                if options["exits"]:
                    sys.stdout.write("CUDA error: an illegal memory access was encountered\n")
                    sys.stdout.flush()
                    os._exit(3)
                self.connection.close()
                return
        time.sleep(options["slow"])
        if body.get("echo"):
            self._echo(body)
        elif body.get("stream") and options["stream"]:
            self._stream(self._answer(body["prompt"]), body)
        else:
            self._json({"choices": [{"text": self._answer(body["prompt"]), "finish_reason": "stop"}]})

    def _answer(self, prompt: str) -> str:
        question = prompt.rpartition("Question: ")[2]
        numbers = re.findall(r"\d+", question)
        chance = int.from_bytes(hashlib.sha256(question.encode()).digest()[:2], "big") / 2**16
        wrong = "9" if chance < self.server.options["wrong"] else ""
        return f" It is {numbers[0]}.\n#### {numbers[0]}{wrong}\n\nQuestion: next"

    def _stream(self, text: str, body: dict[str, Any]) -> None:
        for stop in body.get("stop", []):
            text = text.split(stop)[0]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        for piece in re.findall(r"\s*\S+|\s+", text):
            self._event({"choices": [{"text": piece, "finish_reason": None}]})
        self._event({"choices": [{"text": "", "finish_reason": "stop"}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _echo(self, body: dict[str, Any]) -> None:
        if not self.server.options["echo"]:
            self._json({"error": "echo is not supported"}, 400)
            return
        tokens = [*re.findall(r"\s*\S+|\s+", body["prompt"]), " more"]
        values: list[float | None] = [None]
        for index, token in enumerate(tokens[1:], start=1):
            digest = hashlib.sha256(f"{index}{token}".encode()).digest()
            values.append(-digest[0] / 64 + self.server.options["shift"] * (digest[1] - 128) / 128)
            if self.server.options["noise"]:
                values[-1] = (values[-1] or 0.0) + 1e-4 * (time.monotonic() % 1)
        tops = [None, *({token: value} for token, value in zip(tokens[1:], values[1:], strict=True))]
        logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
        self._json({"choices": [{"text": body["prompt"] + " more", "finish_reason": "length", "logprobs": logprobs}]})

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, data: dict[str, Any], code: int = 200) -> None:
        content = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--wrong", type=float, default=0.0)
    parser.add_argument("--shift", type=float, default=0.0)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--says", default="ready")
    options = vars(parser.parse_args())
    port, says = options.pop("port"), options.pop("says")
    server = FakeServer(port, exits=True, **options)
    sys.stdout.write(f"{says}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
