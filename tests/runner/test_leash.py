"""Several processes on one leash: all of them end with the process that holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import wait_until

HOLDER = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from moecheck.runner.leash import bind_one_of_many

def who(number):
    time.sleep(0.5)  # so that each worker takes one
    return os.getpid()

if __name__ == "__main__":
    context = get_context("fork")
    leash, hand = context.Pipe(duplex=False)

    def start(end):
        hand.close()  # a fork has a copy of it
        bind_one_of_many(end)

    with ProcessPoolExecutor(3, mp_context=context, initializer=start, initargs=(leash,)) as pool:
        print(*set(pool.map(who, range(6))), flush=True)
        time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:1]
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker ends after the call that it is in")
def test_kill_9_ends_all_of_them(tmp_path: Path) -> None:
    script = tmp_path / "holder.py"
    script.write_text(HOLDER, encoding="utf-8")
    holder = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    workers = [int(pid) for pid in holder.stdout.readline().split()]
    assert len(workers) > 1
    assert all(map(alive, workers))
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert wait_until(lambda: not any(map(alive, workers)), seconds=10), workers
