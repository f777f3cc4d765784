"""The records of a finished run, as summary.json holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from moecheck.checks.finding import FAILURES, Verdict
from moecheck.report.strict_json import number
from moecheck.typed import check_types

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A judged metric: its value, the limit on |value| that honest rounding explains, and the case."""

    name: str
    value: float
    limit: float
    case: str

    @property
    def share(self) -> float:
        """|value| / limit: above 1 rounding does not explain it. NaN is infinitely far beyond."""
        size = math.inf if math.isnan(self.value) else abs(self.value)
        if size == 0.0 or self.limit == 0.0:
            return 0.0 if size == 0.0 else math.inf
        return size / self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationTally:
    """A metamorphic relation: the number of cases on which it held and was broken; not_tried: why not on others."""

    name: str
    held: int
    broken: int
    not_tried: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """A property beyond values: whether the kernel declares it, and on how many of the cases tried it was observed."""

    name: str
    declared: bool
    observed: int
    tried: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSummary:
    """All that one run says of one kernel.

    cases: kernel x case runs that were judged (not skipped); of these, passed_cases, failed_cases and vacuous_cases.
    max_diff = max|out - ref|, max_rel_diff = max|out - ref| / rms(ref), mismatch_ratio = share of elements with
    |out - ref| > tol + tol * |ref|, rms_z, max_z: each the largest over the judged cases; rms_z_median: of the same
    rms_z over the cases. None: not measured.
    slope_error, slope_error_se: slope of out on ref, less 1, and its standard error, pooled with weights 1 / se^2 over
    the cases of one dtype: the one where it is the most standard errors from 0.
    contract: where the kernel was seen to round, in words; `unknown` where no contract that was tried explains its
    bits; None for ops without such points. contract_agreement: share of the bits that it reproduces.
    contract_runner_up, contract_runner_up_agreement: the best contract with other bits, in words by which it differs.
    contract_problem: what is wrong with the contract. below_floor: stores that it declares below what an undeclared
    kernel may have.
    detection_limits: dtype -> the smallest factor on a whole output that a passing case of the dtype would have shown.
    detection_limit: the largest of these: seen whichever dtype it is in. element_limit: how far off, in sigma, a single
    element must be to show in every passing case. All None or empty where nothing passed that has such limits.
    statistics: each judged metric, the worst first: of a kernel that failed on its worst case, else on the case where
    it came nearest to its limit.
    relations: metamorphic relations that were looked at. capabilities: those that were observed or declared.
    worst_case: id of the case that decided the verdict. check, message, where: of its worst finding. diagnosis: which
    known bug the failure looks like, in words.
    reproduce: a shell command, None for a kernel that passed. skip_reasons, undecided: reason -> number of cases that
    were skipped or inconclusive. seconds: time in the kernel.
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
    contract_runner_up_agreement: float | None = None
    contract_problem: str | None = None
    below_floor: tuple[str, ...] = ()
    detection_limit: float | None = None
    detection_limits: dict[str, float] = field(default_factory=dict)
    element_limit: float | None = None
    rms_z: float | None = None
    rms_z_median: float | None = None
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
    undecided: dict[str, int] = field(default_factory=dict)
    statistics: tuple[Measured, ...] = ()
    relations: tuple[RelationTally, ...] = ()
    capabilities: tuple[Capability, ...] = ()

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
        """The inverse of `to_json`, also after a round trip through strict JSON.

        Raises KeyError, TypeError, ValueError, AttributeError or OverflowError for what is no summary.
        """
        kernels = tuple(_kernel_from_json(kernel) for kernel in data["kernels"])
        skipped = tuple(Skipped(**entry) for entry in data["skipped"])
        summary = cls(**{**data, "kernels": kernels, "skipped": skipped})
        check_types(summary)
        return summary


def _kernel_from_json(data: Mapping[str, Any]) -> KernelSummary:
    values: dict[str, Any] = dict(data)
    for name in _METRICS:
        if values.get(name) is not None:
            values[name] = number(values[name])
    measured = [
        Measured(**{**entry, "value": number(entry["value"]), "limit": number(entry["limit"])})
        for entry in values.get("statistics", ())
    ]
    values |= {
        "verdict": Verdict(values["verdict"]),
        "below_floor": tuple(values.get("below_floor", ())),
        "detection_limits": {name: number(value) for name, value in values.get("detection_limits", {}).items()},
        "statistics": tuple(measured),
        "relations": tuple(RelationTally(**entry) for entry in values.get("relations", ())),
        "capabilities": tuple(Capability(**entry) for entry in values.get("capabilities", ())),
    }
    return KernelSummary(**values)


_METRICS = (
    "max_diff",
    "max_rel_diff",
    "mismatch_ratio",
    "tol",
    "contract_agreement",
    "contract_runner_up_agreement",
    "detection_limit",
    "element_limit",
    "rms_z",
    "rms_z_median",
    "max_z",
    "slope_error",
    "slope_error_se",
    "seconds",
)
