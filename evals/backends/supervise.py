"""Runs a shell command and ends with it: a script of its own, so that no server outlives the run that started it.

`python supervise.py COMMAND` leads a process group, waits for the command, and returns its exit code. When its standard
input closes, because the run is over or was killed, the whole group is ended: SIGTERM, and SIGKILL some seconds later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 10.0


def main(command: str) -> int:
    """The command's exit code; what it left behind in its group is ended."""
    # A handler, not SIG_IGN, which the command would inherit: the group's SIGTERM must not end this process first.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    child = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    code = child.wait()
    os.killpg(0, signal.SIGTERM)
    return code


def _end_with_input(child: subprocess.Popen[bytes]) -> None:
    """When there is nobody left to write to this process: end the group, this process last."""
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
