"""Servers by address and by command: answers, log-probabilities, times, deaths, and nothing left running."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from moecheck.errors import Unsupported, UsageError
from moecheck.evals.backends.openai_client import Client, ServerGone
from moecheck.evals.backends.server import ServerBackend, is_url
from moecheck.evals.backends.server_process import ServerProcess, port_of
from tests.cli.command import Result, moecheck
from tests.cli.processes import MARK, marked, wait_until
from tests.evals.backends.fake_server import FakeServer

SCRIPT = Path(__file__).with_name("fake_server.py")


@contextmanager
def serving(**options: Any) -> Iterator[FakeServer]:
    """A server in a thread."""
    server = FakeServer(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def backend(server: FakeServer, tmp_path: Path, **options: Any) -> ServerBackend:
    given: dict[str, Any] = {"name": "candidate", "served": None, "start_timeout": 20.0, "concurrency": 4} | options
    return ServerBackend(server.url, log=tmp_path / "log", **given)


def write_questions(folder: Path, count: int = 60) -> Path:
    path = folder / "test.jsonl"
    rows = [{"question": f"What is {index}?", "answer": f"It is {index}.\n#### {index}"} for index in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def compare(folder: Path, baseline: str, candidate: str, *more: str) -> Result:
    """`moecheck e2e` on a server pair, without lm-eval."""
    data = write_questions(folder)
    common = ("--data", str(data), "--harness", "own", "--concurrency", "8", "--start-timeout", "20")
    return moecheck("e2e", "--baseline", baseline, "--candidate", candidate, *common, *more, out=folder / "out")


def command(*options: str) -> str:
    return " ".join([shlex.quote(sys.executable), shlex.quote(str(SCRIPT)), "--port {port}", *options])


def test_answers_are_cut_at_stop_strings_and_timed(tmp_path: Path) -> None:
    with serving() as server:
        one, two = backend(server, tmp_path).generate(
            ["Question: 1?", "Question: 22?"], until=["Question:"], max_new_tokens=9
        )
    assert (one.text, two.text) == (" It is 1.\n#### 1\n\n", " It is 22.\n#### 22\n\n")
    assert one.finish == "stop"
    assert one.timing is not None
    assert 0 < one.timing.first_token <= one.timing.arrivals[-1] <= one.timing.total
    assert {body["max_tokens"] for body in server.requests} == {9}
    assert {body["temperature"] for body in server.requests} == {0.0}


def test_a_server_that_does_not_stream_is_read_too(tmp_path: Path) -> None:
    with serving(stream=False) as server:
        (one,) = backend(server, tmp_path).generate(["Question: 1?"], until=["Question:"], max_new_tokens=9)
    assert one.text == " It is 1.\n#### 1\n\n"
    assert one.timing is not None
    assert one.timing.arrivals == ()


def test_log_probabilities_are_those_of_the_continuation(tmp_path: Path) -> None:
    with serving() as server:
        (one,) = backend(server, tmp_path).score([("a b c", " d e")])
        (other,) = backend(server, tmp_path).score([("a b c", " d x")])
    assert len(one.token_ids) == len(one.logprobs) == 2
    assert one.token_ids[0] == other.token_ids[0]
    assert one.token_ids[1] != other.token_ids[1]
    assert one.top1 is not None
    assert tuple(one.top1.tolist()) == one.token_ids


def test_without_echo_there_are_none(tmp_path: Path) -> None:
    with serving(echo=False) as server, pytest.raises(Unsupported, match="needs log-probabilities"):
        backend(server, tmp_path).score([("a", " b")])
    with serving() as server, pytest.raises(Unsupported, match="whole vocabulary"):
        backend(server, tmp_path).score([("a", " b")], rows=True)


def test_nobody_at_an_address_is_one_sentence(tmp_path: Path) -> None:
    result = compare(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9/v1")
    assert result.code == 2
    assert "No server answers at http://127.0.0.1:9" in result.err


def test_what_is_no_openai_server_is_told() -> None:
    words = "not what an OpenAI-compatible server says"
    with serving(models={"hello": 1}) as server, pytest.raises(UsageError, match=words):
        Client(server.url + "/v1").models()


def test_a_server_that_cannot_list_its_models_needs_a_name(tmp_path: Path) -> None:
    with serving(models=None) as server:
        with pytest.raises(UsageError, match="name one with --served-model"):
            backend(server, tmp_path)
        assert backend(server, tmp_path, served="m").fingerprint.model == "m"


def test_alike_servers_pass_when_something_shows_a_difference(tmp_path: Path) -> None:
    with ExitStack() as stack:
        baseline, candidate = stack.enter_context(serving()), stack.enter_context(serving(shift=1e-4))
        result = compare(tmp_path, baseline.url, candidate.url)
    assert result.code == 0, result.out
    data = json.loads((result.folder / "e2e.json").read_text(encoding="utf-8"))
    outcomes = [signal["outcome"] for signal in data["signals"]]
    assert outcomes == ["absent", "pass", "absent", "pass", "inconclusive"]
    assert data["throughput"]["candidate"]["requests"] == 60
    assert data["throughput"]["candidate"]["between_tokens_median"] >= 0


def test_servers_that_are_bit_for_bit_alike_show_nothing(tmp_path: Path) -> None:
    with serving() as server:
        result = compare(tmp_path, server.url, server.url)
    assert result.code == 4
    assert "bit for bit the same" in result.out.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"wrong": 0.3}, "identical texts", id="wrong answers"),
        pytest.param({"shift": 0.5}, "teacher-forced divergence", id="other log-probabilities"),
    ],
)
def test_a_wrong_candidate_fails(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with ExitStack() as stack:
        baseline, candidate = stack.enter_context(serving()), stack.enter_context(serving(**options))
        result = compare(tmp_path, baseline.url, candidate.url)
    assert result.code == 1
    verdict = json.loads((result.folder / "e2e.json").read_text(encoding="utf-8"))["verdict"]
    assert verdict["deciding"] == words


def test_without_log_probabilities_texts_decide(tmp_path: Path) -> None:
    with ExitStack() as stack:
        baseline, candidate = (stack.enter_context(serving(echo=False, wrong=wrong)) for wrong in (0.0, 0.02))
        result = compare(tmp_path, baseline.url, candidate.url)
    assert result.code == 0, result.out
    signals = json.loads((result.folder / "e2e.json").read_text(encoding="utf-8"))["signals"]
    assert [signal["outcome"] for signal in signals][:4] == ["absent", "absent", "absent", "pass"]


def test_two_commands_run_one_after_the_other_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, str(tmp_path))
    result = compare(
        tmp_path, command(), command("--shift 1e-4", "--says fast-kernel"), "--candidate-log-has", "fast-kernel"
    )
    assert result.code == 0, result.out + result.err
    assert "fast-kernel" in (result.folder / "candidate.log").read_text(encoding="utf-8")
    assert wait_until(lambda: not marked(str(tmp_path)), seconds=10)


def test_a_log_without_the_words_is_no_evidence(tmp_path: Path) -> None:
    result = compare(tmp_path, command(), command("--shift 1e-4"), "--candidate-log-has", "fast-kernel")
    assert result.code == 4
    assert "does not have the words" in result.out.replace("\n", " ")


def test_a_server_that_dies_is_told_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, str(tmp_path))
    with serving() as server:
        broken = command("--shift 1e-4", "--die-after 30")
        result = compare(tmp_path, server.url, broken, "--batch-size", "10")
        assert result.code == 2
        line = result.err.strip().splitlines()[-1]
        assert "The candidate's server died" in line
        assert "exit code 3" in line
        assert "illegal memory access" in line
        (folder,) = [path for path in (tmp_path / "out").iterdir() if path.name != "latest"]
        assert f"--resume {folder}" in line
        kept = (folder / "answers.jsonl").read_text(encoding="utf-8")
        assert kept.count("candidate: ") == 3
        asked = len(server.requests)
        again = moecheck("e2e", "--resume", folder)
        assert again.code == 2  # it dies again, but the baseline is asked nothing, and the candidate what is left
        assert len(server.requests) == asked
    assert (folder / "answers.jsonl").read_text(encoding="utf-8").count("candidate: ") > 3
    assert wait_until(lambda: not marked(str(tmp_path)), seconds=10)


def test_a_command_that_fails_at_once_is_quoted(tmp_path: Path) -> None:
    result = compare(tmp_path, "echo no such model; exit 7; # {port}", command())
    assert result.code == 2
    assert "exit code 7" in result.err
    assert "no such model" in result.err


def test_a_command_that_never_serves_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, str(tmp_path))
    process = ServerProcess("sleep 60 & sleep 60; # {port}", name="baseline", log=tmp_path / "log")
    with pytest.raises(UsageError, match=r"not healthy after 0\.5 s"):
        process.start(timeout=0.5)
    assert wait_until(lambda: not marked(str(tmp_path)), seconds=10)


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with serving() as server:
        port = server.server_address[1]
        process = ServerProcess(f"vllm serve --port {port}", name="baseline", log=tmp_path / "log")
        with pytest.raises(UsageError, match=f"Port {port} is taken"):
            process.start(timeout=1.0)


def test_a_killed_run_leaves_no_server(tmp_path: Path) -> None:
    """SIGKILL, which nothing in the run can catch."""
    mark = str(tmp_path)
    program = (
        "import sys, time; from pathlib import Path; "
        "from moecheck.evals.backends.server_process import ServerProcess; "
        f"p = ServerProcess({command()!r}, name='baseline', log=Path({str(tmp_path / 'log')!r})); "
        "p.start(timeout=20); print('up', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, MARK: mark}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        assert len(marked(mark)) >= 3
        run.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not marked(mark), seconds=15)


def test_ports() -> None:
    assert port_of("vllm serve m --port 8123") == ("vllm serve m --port 8123", 8123)
    assert port_of("vllm serve m --port=8124")[1] == 8124
    assert port_of("vllm serve m")[1] == 8000
    text, port = port_of("x --port {port}")
    assert text == f"x --port {port}"
    assert is_url("https://a")
    assert not is_url("vllm serve m")


def test_a_server_that_hangs_up_is_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with serving(die_after=0) as server:
        with pytest.raises(ServerGone, match="stopped answering"):
            Client(server.url, timeout=5.0).complete({"prompt": "1"})
        assert len(server.requests) == 3
