"""The records of a finished run, as summary.json holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from moecheck.checks.finding import FAILURES, Verdict
from moecheck.report.strict_json import number

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSummary:
    """All that one run says of one kernel.

    cases: kernel x case runs that were judged (not skipped); of these, passed_cases, failed_cases and vacuous_cases.
    max_diff = max|out - ref|, max_rel_diff = max|out - ref| / rms(ref), mismatch_ratio = share of elements with
    |out - ref| > tol + tol * |ref|, rms_z, max_z: each the largest over the judged cases; None: not measured.
    slope_error, slope_error_se, detection_limit, contract, contract_agreement, contract_runner_up, diagnosis: None
    where no check tells.
    worst_case: id of the case that decided the verdict. check, message, where: of its worst finding.
    reproduce: a shell command, None for a kernel that passed. skip_reasons: reason -> number of cases. seconds: time
    in the kernel.
    """

    name: str
    op: str
    backend: str
    device: str
    verdict: Verdict
    cases: int = 0
    passed_cases: int = 0
    failed_cases: int = 0
    vacuous_cases: int = 0
    skipped_cases: int = 0
    max_diff: float | None = None
    max_rel_diff: float | None = None
    mismatch_ratio: float | None = None
    tol: float | None = None
    contract: str | None = None
    contract_agreement: float | None = None
    contract_runner_up: str | None = None
    detection_limit: float | None = None
    rms_z: float | None = None
    max_z: float | None = None
    slope_error: float | None = None
    slope_error_se: float | None = None
    worst_case: str | None = None
    diagnosis: str | None = None
    reproduce: str | None = None
    seconds: float = 0.0
    check: str | None = None
    message: str = ""
    where: dict[str, int] = field(default_factory=dict)
    skip_reasons: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.verdict in FAILURES

    @property
    def tally(self) -> str:
        """`25/26`: passed of those that could fail, with the number of skipped cases where most were skipped."""
        text = f"{self.passed_cases}/{self.cases - self.vacuous_cases}"
        return f"{text} ({self.skipped_cases} skipped)" if self.skipped_cases > self.cases else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A kernel that was not run at all, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A finished run; `to_json` is the content of summary.json.

    started: ISO 8601 in UTC. seconds: wall time. git: commit of the working directory, `-dirty` when it has changes.
    totals: verdict -> number of checks, where a check is one kernel x case. checks_per_second: judged checks per second
    of wall time, kernels run by an interpreter and the time spent on them excluded; None when nothing else was judged.
    """

    command: str
    started: str
    seconds: float
    git: str | None
    totals: dict[str, int]
    checks_per_second: float | None
    kernels: tuple[KernelSummary, ...]
    skipped: tuple[Skipped, ...] = ()
    tol: float | None = None
    profile: str | None = None
    seed: int | None = None
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Plain data, `schema` first; non-finite numbers are still floats (strict_json.dumps names them)."""
        data = asdict(self)
        return {"schema": data.pop("schema"), **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunSummary:
        """The inverse of `to_json`, also after a round trip through strict JSON."""
        kernels = tuple(_kernel_from_json(kernel) for kernel in data["kernels"])
        skipped = tuple(Skipped(**entry) for entry in data["skipped"])
        return cls(**{**data, "kernels": kernels, "skipped": skipped})


def _kernel_from_json(data: Mapping[str, Any]) -> KernelSummary:
    values: dict[str, Any] = dict(data)
    for name in _METRICS:
        if values.get(name) is not None:
            values[name] = number(values[name])
    return KernelSummary(**{**values, "verdict": Verdict(values["verdict"])})


_METRICS = (
    "max_diff",
    "max_rel_diff",
    "mismatch_ratio",
    "tol",
    "contract_agreement",
    "detection_limit",
    "rms_z",
    "max_z",
    "slope_error",
    "slope_error_se",
    "seconds",
)
