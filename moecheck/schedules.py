"""Schedules of the DMAs of a kernel that an interpreter runs: a TPU may have any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """dma: when copies run, as soon as they are started (`eager`) or as late as they may, the newest first (`on_wait`).

    watched: whether races are looked for.
    """

    dma: Literal["on_wait", "eager"] = "on_wait"
    watched: bool = True


# That of every call, and those that a kernel is tried on as well.
USUAL = Schedule()
OTHERS = (Schedule(dma="eager", watched=False), Schedule(dma="eager"), Schedule(watched=False))
