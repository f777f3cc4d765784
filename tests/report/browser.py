"""A headless Chromium driven by its DevTools protocol through a pipe, so that tests need no driver and no port."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0  # seconds for one answer, on a machine that is busy with other tests


def find_chromium() -> str | None:
    """The program, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser.

    problems: what a page reported: uncaught exceptions, errors on the console, and what its policy blocked.
    requests: every address that was asked for.
    """

    def __init__(self, program: str, profile: Path) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._buffer, self._number, self._loaded = b"", 0, False
        there, self._write = os.pipe()
        self._read, back = os.pipe()
        # The browser reads its descriptor 3 and writes to 4; a shell puts them there.
        script = f'exec "$0" "$@" 3<&{there} 4>&{back}'
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command = ["bash", "-c", script, program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [*command, "about:blank"],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(there)
        os.close(back)
        target = self._call("Target.createTarget", session=None, url="about:blank")["targetId"]
        self._session = str(
            self._call("Target.attachToTarget", session=None, targetId=target, flatten=True)["sessionId"]
        )
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command to the page."""
        return self._call(method, session=self._session, **parameters)

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a page from disk and wait until it has loaded; another place of the same page is not loaded again."""
        self._loaded = False
        if "loaderId" in self.call("Page.navigate", url=path.resolve().as_uri() + fragment):
            self.wait()

    def wait(self) -> None:
        """Until the page that is being loaded has loaded."""
        deadline = time.monotonic() + PATIENCE
        while not self._loaded:
            self._handle(self._message(deadline))

    def click(self, selector: str) -> None:
        """Click an element; where that leads to another page, `wait` for it."""
        self._loaded = False
        assert self.run(f"document.querySelector({json.dumps(selector)})?.click() === undefined"), selector

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the window in CSS pixels, and the colours that the user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, *, session: str | None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result = answer["result"]
                assert isinstance(result, dict)
                return result
            self._handle(answer)

    def _handle(self, message: dict[str, Any]) -> None:
        method, values = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif (
            method == "Runtime.exceptionThrown"
            or (method == "Log.entryAdded" and values["entry"]["level"] == "error")
            or (method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning"))
        ):
            self.problems.append(json.dumps(values))

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._read, 1 << 16) if ready else b""
            if not data:
                raise TimeoutError("the browser does not answer")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message
