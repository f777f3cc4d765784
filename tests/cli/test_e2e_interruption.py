"""An end-to-end run that is cut off keeps its batches, and goes on with them."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from tests.cli.command import moecheck, start
from tests.cli.processes import wait_until
from tests.evals.backends.fake_server import FakeServer

BATCHES = 4  # answered before the run is cut off


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers slowly, so that there is something to interrupt."""
    served = FakeServer(slow=0.15)
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def kept(out: Path) -> list[str]:
    """Keys of the batches that are in the journal."""
    lines = [line for path in out.glob("2*/answers.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)["key"] for line in lines if line.endswith("}")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_cut_off_run_keeps_its_batches_and_goes_on(server: FakeServer, tmp_path: Path, number: int) -> None:
    data, out = tmp_path / "test.jsonl", tmp_path / "out"
    rows = [{"question": f"What is {index}?", "answer": f"{index}\n#### {index}"} for index in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pair = ("--baseline", server.url, "--candidate", server.url, "--data", data, "--harness", "own")
    process = start("e2e", *pair, "--batch-size", "2", "--out", out, cwd=tmp_path)
    assert wait_until(lambda: len(kept(out)) >= BATCHES or process.poll() is not None, seconds=60)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=30)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "go on with --resume DIR" in error.strip().splitlines()[-1]
    before = kept(out)
    asked = len(server.requests)
    server.options["slow"] = 0.0
    (folder,) = [path for path in out.iterdir() if path.name != "latest"]
    assert moecheck("e2e", "--resume", folder).code == 4  # the same server twice shows nothing
    after = kept(out)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after)
    # 8 batches in each arm and again, and gold answers: what was answered before is not asked again.
    assert len(server.requests) > asked
    prompts = [(body["prompt"], bool(body.get("echo"))) for body in server.requests[asked:]]
    assert len(prompts) < len(rows) * 6 - 2 * (BATCHES - 1)
