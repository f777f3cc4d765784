"""What the findings of one kernel's cases show together: statistics, limits, contract, relations, capabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from moecheck.checks.finding import Finding, Verdict
from moecheck.formats import FORMATS
from moecheck.kernel import Declaration
from moecheck.report.results import Capability, Measured, RelationTally

CONTRACT, RELATIONS = "numerics", "relations"  # names of checks
OBSERVED = "_observed"
HELD, NOT_TRIED = "held", "not tried: "
Cases = Mapping[str, Sequence[Finding]]  # case id -> its findings


def dtype_of(case: str) -> str:
    """The format in a case's id (`op/dtype/...`); an empty string in an id of another make."""
    parts = case.split("/")
    return parts[1] if len(parts) > 1 and parts[1] in FORMATS else ""


def detection_limits(passed: Cases) -> dict[str, float]:
    """By dtype: the smallest factor on all of an output that a case of this dtype would have shown.

    passed: the cases that passed.
    """
    limits: dict[str, float] = {}
    for case, lines in passed.items():
        for value in _numbers(lines, "smallest_factor"):
            dtype = dtype_of(case)
            limits[dtype] = min(value, limits.get(dtype, math.inf))
    return dict(sorted(limits.items()))


def element_limit(passed: Cases) -> float | None:
    """Standard deviations by which one element must be off to show in every case that passed."""
    limits = [line.limits["max_z"] for lines in passed.values() for line in lines if "max_z" in line.limits]
    return max(limits, default=None)


def pooled_slope(cases: Cases) -> tuple[float | None, float | None]:
    """Slope error and its standard error, pooled over the cases of one dtype with weights 1 / se^2.

    Of several dtypes, the one whose pooled slope error is the most standard errors from 0: fp32 alone would outweigh
    all others.
    """
    sums: dict[str, tuple[float, float]] = {}
    for case, lines in cases.items():
        for line in lines:
            slope, error = line.numbers.get("slope_error"), line.numbers.get("slope_error_se", 0.0)
            if slope is None or not (error > 0.0 and math.isfinite(slope)):
                continue
            total, weight = sums.get(dtype_of(case), (0.0, 0.0))
            sums[dtype_of(case)] = total + slope / error**2, weight + 1 / error**2
    if not sums:
        return None, None
    total, weight = max(sums.values(), key=lambda pair: abs(pair[0]) / math.sqrt(pair[1]))
    return total / weight, 1 / math.sqrt(weight)


def median_of(cases: Iterable[Sequence[Finding]], name: str) -> float | None:
    """The median over the cases of a metric, None where no case has it. NaN counts as the largest."""
    values = [math.inf if math.isnan(value) else value for lines in cases for value in _numbers(lines, name)]
    return median(values) if values else None


def nearest_to_limit(cases: Cases) -> tuple[Measured, ...]:
    """Each judged metric in the case where it came nearest to its limit, or went furthest beyond; the worst first."""
    worst: dict[str, Measured] = {}
    for case, lines in cases.items():
        for line in lines:
            for name, limit in line.limits.items():
                measured = Measured(name=name, value=line.numbers[name], limit=limit, case=case)
                if name not in worst or measured.share > worst[name].share:
                    worst[name] = measured
    return tuple(sorted(worst.values(), key=lambda measured: -measured.share))


def contract_finding(cases: Cases) -> Finding | None:
    """The finding that says what the kernel's contract is; a resumed run looks twice, and the later look counts."""
    found = [line for lines in cases.values() for line in lines if line.check == CONTRACT]
    return found[-1] if found else None


def diagnosis_of(cases: Cases) -> str | None:
    """Which known bug the kernel's failure looks like, in words."""
    return next((line.diagnosis for lines in cases.values() for line in lines if line.diagnosis), None)


def relations_of(cases: Cases) -> tuple[RelationTally, ...]:
    """Every relation that was looked at: on how many cases it held or not, or why it was not tried."""
    tallies: dict[str, Counter[str]] = {}
    for line in _lines(cases):
        for name, fact in line.facts.items() if line.check == RELATIONS else ():
            tallies.setdefault(name, Counter())[fact] += 1
    for line in _lines(cases):  # one that alone was tried on a case has no joint finding
        if line.check in tallies and line.verdict is not Verdict.PASS:
            tallies[line.check]["broken"] += 1 - _noted(cases, line)
    return tuple(_tally(name, facts) for name, facts in tallies.items())


def capabilities_of(declaration: Declaration, cases: Cases) -> tuple[Capability, ...]:
    """What was observed of the kernel beyond its values: `deterministic`, `batch_invariant`, `nan_isolation`, ..."""
    tried: Counter[str] = Counter()
    observed: Counter[str] = Counter()
    for line in _lines(cases):
        for name, value in line.numbers.items():
            if name.endswith(OBSERVED):
                tried[name.removesuffix(OBSERVED)] += 1
                observed[name.removesuffix(OBSERVED)] += value == 1.0
    declared = {name for name in ("deterministic", "batch_invariant", "tie") if getattr(declaration, name)}
    names = [*tried, *sorted(declared - set(tried) - {"tie"})]
    return tuple(
        Capability(name=name, declared=name in declared, observed=observed[name], tried=tried[name]) for name in names
    )


def _noted(cases: Cases, broken: Finding) -> int:
    """1 where the joint finding of the case already says that the relation is broken."""
    joint = [line for line in cases[broken.case] if line.check == RELATIONS and broken.check in line.facts]
    return min(len(joint), 1)


def _tally(name: str, facts: Counter[str]) -> RelationTally:
    reasons = [fact.removeprefix(NOT_TRIED) for fact in facts if fact.startswith(NOT_TRIED)]
    return RelationTally(name=name, held=facts[HELD], broken=facts["broken"], not_tried="; ".join(reasons))


def _numbers(lines: Iterable[Finding], name: str) -> list[float]:
    return [line.numbers[name] for line in lines if name in line.numbers]


def _lines(cases: Cases) -> Iterator[Finding]:
    return (line for lines in cases.values() for line in lines)
