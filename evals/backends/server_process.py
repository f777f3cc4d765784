"""A server started by a command, health-checked, and ended with everything that it started."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from moecheck.errors import UsageError

from .openai_client import Client

PORT = re.compile(r"--port[= ]+(\d+)")
DEFAULT_PORT = 8000  # of vLLM and of transformers serve
LAST_LINES = 5
GRACE = 15.0


def port_of(command: str) -> tuple[str, int]:
    """The command with `{port}` replaced by a free port, and the port; without it, that of --port, or 8000."""
    if "{port}" in command:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
        return command.replace("{port}", str(port)), port
    found = PORT.search(command)
    return command, int(found[1]) if found else DEFAULT_PORT


class ServerProcess:
    """One command, up from `start` to `stop`. name: of the arm, for messages. log: what the command prints."""

    def __init__(self, command: str, *, name: str, log: Path) -> None:
        self.name, self.log = name, log
        self.command, self.port = port_of(command)
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, timeout: float) -> None:
        """Until it is healthy. Raises UsageError where it ends before, needs too long, or the port is taken."""
        if _answers(self.port):
            raise UsageError(f"Port {self.port} is taken: the {self.name}'s command cannot start its server there.")
        script = Path(__file__).with_name("supervise.py")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(script), self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        client = Client(self.url, timeout=5.0)
        deadline = time.monotonic() + timeout
        try:
            while not client.healthy():
                code = self._process.poll()
                if code is not None:
                    raise UsageError(f"The {self.name}'s command ended with exit code {code}.{self.last_words()}")
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"The {self.name}'s server was not healthy after {timeout:g} s (--start-timeout)."
                        f"{self.last_words()}"
                    )
                time.sleep(0.2)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the command and all that it started; calling it twice is allowed."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def last_words(self) -> str:
        """The end of its log as a clause for a message; empty without any."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        kept = [line.strip() for line in lines if line.strip()][-LAST_LINES:]
        return f" Its last words ({self.log}): {' | '.join(kept)}" if kept else f" It printed nothing ({self.log})."

    def log_has(self, text: str) -> bool:
        """Whether these words are in its log."""
        return text in self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else False

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()


def _answers(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1.0)
        return one.connect_ex(("127.0.0.1", port)) == 0
