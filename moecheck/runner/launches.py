"""Which device kernels a call launches, by the names that the profiler of torch gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        yield names
        torch.cuda.synchronize()
    on_device = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    names += distinct(event.name for event in sorted(on_device, key=lambda event: event.time_range.start))


def distinct(names: Iterator[str]) -> list[str]:
    """Short names, each once, without copies; at most MOST_NAMES of them."""
    short = (_short(name) for name in names if not name.startswith(_COPIES))
    return list(dict.fromkeys(short))[:MOST_NAMES]


def _short(name: str) -> str:
    return _ARGUMENTS.sub("", name).removeprefix("void ")[:120]
