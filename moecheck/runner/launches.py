"""Which device kernels a call launches, by the names that the profiler of torch gives them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from moecheck.runner.arrays import TORCH_BACKENDS, device_of

MOST_NAMES = 24
_COPIES = ("Memcpy", "Memset")
_ARGUMENTS = re.compile(r"\(.*\)$")


@contextmanager
def launches(backend: str, *, wanted: bool) -> Iterator[list[str]]:
    """The list is filled when the block ends: distinct names in the order of their first launch; else it stays empty.

    Copies and memory that is set are left out, and the arguments of C++ names.
    """
    names: list[str] = []
    if not wanted or backend not in TORCH_BACKENDS or device_of(backend) != "cuda":
        yield names
        return
    stop = _profiled()
    yield names  # what is raised here is the kernel's
    names += stop()


def _profiled() -> Callable[[], list[str]]:
    """Start the profiler; the function stops it and gives the names. What fails in it is a name of its own."""
    import torch

    try:
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        profiler.start()
    except Exception as error:  # a profiler that cannot start says nothing of the kernel
        reason = f"unknown, {type(error).__name__}"
        return lambda: [reason]

    def stop() -> list[str]:
        try:
            torch.cuda.synchronize()
            profiler.stop()
            events = profiler.events()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            found = [event for event in events if event.device_type.name == "CUDA"]
            return distinct(event.name for event in sorted(found, key=lambda event: event.time_range.start))
        except Exception as error:  # as above; a fault of the kernel's was raised before, where it was waited for
            return [f"unknown, {type(error).__name__}"]

    return stop


def distinct(names: Iterator[str]) -> list[str]:
    """Short names, each once, without copies; at most MOST_NAMES of them."""
    short = (_short(name) for name in names if not name.startswith(_COPIES))
    return list(dict.fromkeys(short))[:MOST_NAMES]


def _short(name: str) -> str:
    return _ARGUMENTS.sub("", name).removeprefix("void ")[:120]
