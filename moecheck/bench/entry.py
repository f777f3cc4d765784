"""What was measured of one kernel on one case."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from moecheck.bench.limits import Limits
from moecheck.bench.timing import Timing
from moecheck.bench.work import Work

Status = Literal["timed", "wrong", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One kernel on one case. weights: format or scheme of the weights. case: its id. status: only a kernel that passes
    its checks is `timed`; one that does not is `wrong`, and `reason` says why. roofline: the least seconds that this
    device could take, None where its limits are unknown. ratio: the baseline's median by this one's, above 1 where this
    kernel is faster.
    """

    kernel: str
    op: str
    model: str
    weights: str
    tokens: int
    case: str
    device: str
    status: Status
    reason: str = ""
    timing: Timing | None = None
    work: Work | None = None
    roofline: float | None = None
    ratio: float | None = None

    @property
    def group(self) -> tuple[str, str, str, int]:
        """What entries that are compared with each other have in common."""
        return self.op, self.model, self.weights, self.tokens

    @property
    def tflops(self) -> float | None:
        """10^12 floating-point operations in a second."""
        return None if self.timing is None or self.work is None else self.work.flops / self.timing.median / 1e12

    @property
    def gbps(self) -> float | None:
        """10^9 bytes in a second, of those that any kernel must move."""
        return None if self.timing is None or self.work is None else self.work.bytes / self.timing.median / 1e9

    @property
    def roofline_share(self) -> float | None:
        """Share of what the device could do at most."""
        return None if self.timing is None or self.roofline is None else self.roofline / self.timing.median

    def to_json(self) -> dict[str, Any]:
        derived = {"tflops": self.tflops, "gbps": self.gbps, "roofline_share": self.roofline_share}
        return {**asdict(self), **derived}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One run. limits: of each device. entries: in the order of cases, then kernels. skipped: kernels that cannot run
    here, with the reason.
    """

    command: str
    started: str
    seconds: float
    baseline: str
    limits: dict[str, Limits]
    entries: tuple[Entry, ...]
    skipped: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("command", "started", "seconds", "baseline", "skipped")}
        return {
            "schema": 1,
            **values,
            "limits": {name: asdict(limits) for name, limits in self.limits.items()},
            "entries": [entry.to_json() for entry in self.entries],
        }


def with_ratios(entries: list[Entry], baseline: str) -> list[Entry]:
    """The entries in groups, each with its ratio to the baseline's median of the same group."""
    medians = {
        entry.group: entry.timing.median for entry in entries if entry.kernel == baseline and entry.timing is not None
    }
    compared = [
        replace(entry, ratio=medians[entry.group] / entry.timing.median)
        if entry.timing is not None and entry.group in medians
        else entry
        for entry in entries
    ]
    order = list(dict.fromkeys(entry.group for entry in entries))
    return sorted(compared, key=lambda entry: order.index(entry.group))
