"""Ends a worker process together with the run that started it, however the run ends."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from multiprocessing.connection import Connection

_held: list[Connection] = []  # open as long as the process lives


def bind(end: Connection) -> None:
    """Kill this process as soon as the other end of the pipe is closed, which also the death of its owner does.

    The operating system does it: a thread that waits would not wake while a kernel holds the interpreter's lock.
    """
    _held.append(end)
    if sys.platform != "linux":  # elsewhere a worker ends after the call that it is in
        return
    descriptor = end.fileno()
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    if end.poll():  # it was closed before the signal was asked for
        os.kill(os.getpid(), signal.SIGKILL)


def bind_one_of_many(end: Connection) -> None:
    """As `bind`, for a pipe that several processes are given: it tells one owner only, so each opens it anew."""
    if sys.platform == "linux":
        end = Connection(os.open(f"/proc/self/fd/{end.fileno()}", os.O_RDONLY | os.O_NONBLOCK), writable=False)
    bind(end)
