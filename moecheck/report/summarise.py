"""From the findings of a run to its summary."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from moecheck.checks.finding import FAILURES, SEVERITY, Finding, Verdict, worst
from moecheck.identify.floor import below_floor
from moecheck.kernel import Declaration
from moecheck.report import evidence
from moecheck.report.results import KernelSummary, RunSummary, Skipped

CASE = "case"  # the check name of the line that carries the verdict of a kernel x case
NO_CASE = "no case was selected for it"
Groups = dict[str, dict[str, list[Finding]]]  # kernel -> case -> its findings


def reproduce_line(kernel: str, case: str) -> str:
    """The shell command that runs one case of one kernel again, verbosely."""
    return f"moecheck replay {shlex.quote(case)} --kernel {shlex.quote(kernel)}"


def summarise(
    findings: Sequence[Finding],
    declarations: Iterable[Declaration],
    *,
    command: str,
    started: str,
    seconds: float,
    git: str | None = None,
    skipped: Mapping[str, str] | None = None,
    devices: Mapping[str, str] | None = None,
    interpreted: Mapping[str, float] | None = None,
    tol: float | None = None,
    profile: str | None = None,
    seed: int | None = None,
    reproduce: Callable[[str, str], str] = reproduce_line,
) -> RunSummary:
    """Judge kernels by their cases.

    declarations: of every kernel that was selected. skipped: kernel -> reason, for kernels that were not run at all.
    devices: kernel -> device (`cpu` when absent). interpreted: kernel -> wall seconds, for kernels run by an
    interpreter, whose speed says nothing. reproduce: (kernel name, case id) -> shell command, not asked for kernels
    that passed.
    """
    skipped, devices, interpreted = skipped or {}, devices or {}, interpreted or {}
    groups = group(findings)
    kernels = [
        _kernel(
            declaration,
            groups.get(declaration.name, {}),
            device=devices.get(declaration.name, "cpu"),
            tol=tol,
            reproduce=reproduce,
        )
        for declaration in declarations
        if declaration.name not in skipped
    ]
    verdicts = Counter(line.verdict for line in findings if line.check == CASE)
    judged = sum(kernel.cases for kernel in kernels if kernel.name not in interpreted)
    elapsed = seconds - sum(interpreted.values())
    return RunSummary(
        command=command,
        started=started,
        seconds=seconds,
        git=git,
        totals={verdict.value: verdicts[verdict] for verdict in _TOTALS},
        checks_per_second=judged / elapsed if judged and elapsed > 0 else None,
        kernels=tuple(sorted(kernels, key=_attention)),
        skipped=tuple(Skipped(name=name, reason=reason) for name, reason in sorted(skipped.items())),
        tol=tol,
        profile=profile,
        seed=seed,
    )


def group(findings: Iterable[Finding]) -> Groups:
    """Findings by kernel and case, in the order of their first appearance."""
    groups: Groups = {}
    for finding in findings:
        groups.setdefault(finding.kernel, {}).setdefault(finding.case, []).append(finding)
    return groups


def case_verdict(lines: Sequence[Finding]) -> Finding:
    """The finding that carries the verdict of one kernel x case: its last `case` line, else its worst line."""
    closing = [line for line in lines if line.check == CASE]
    return closing[-1] if closing else max(lines, key=lambda line: SEVERITY.index(line.verdict))


def decisive(lines: Sequence[Finding]) -> Finding:
    """Of one kernel x case, the finding that explains the verdict: the worst check with a message."""
    verdict = case_verdict(lines)
    checks = [line for line in lines if line.check != CASE and line.verdict == verdict.verdict and line.message]
    return checks[0] if checks else verdict


def _kernel(
    declaration: Declaration,
    cases: dict[str, list[Finding]],
    *,
    device: str,
    tol: float | None,
    reproduce: Callable[[str, str], str],
) -> KernelSummary:
    closing = {case: case_verdict(lines) for case, lines in cases.items()}
    judged = {case: cases[case] for case, line in closing.items() if line.verdict != Verdict.SKIP}
    verdicts = [closing[case].verdict for case in judged]
    reasons = Counter(line.message or "no reason given" for line in closing.values() if line.verdict == Verdict.SKIP)
    verdict = worst(verdicts)
    failing = [case for case in judged if closing[case].verdict == verdict and verdict in FAILURES]
    # Of failing cases the first: cases come in order of plainness, and a plain one tells best where the error is.
    worst_case = failing[0] if failing else max(judged, key=lambda case: _badness(judged[case]), default=None)
    shown = decisive(judged[worst_case]) if worst_case else None
    undecided = Counter(
        closing[case].message or "no reason given" for case in judged if closing[case].verdict is Verdict.INCONCLUSIVE
    )
    return KernelSummary(
        **_evidence(declaration, judged, closing),
        statistics=evidence.nearest_to_limit({worst_case: judged[worst_case]} if failing and worst_case else judged),
        name=declaration.name,
        op=declaration.op,
        backend=declaration.backend,
        device=device,
        verdict=verdict,
        cases=len(judged),
        passed_cases=verdicts.count(Verdict.PASS),
        failed_cases=sum(verdict in FAILURES for verdict in verdicts),
        vacuous_cases=verdicts.count(Verdict.VACUOUS),
        skipped_cases=reasons.total(),
        tol=tol,
        worst_case=worst_case,
        reproduce=reproduce(declaration.name, worst_case) if worst_case and verdict is not Verdict.PASS else None,
        seconds=sum(line.seconds for line in closing.values()),
        check=shown.check if shown else None,
        message=shown.message if shown else (reasons.most_common(1)[0][0] if reasons else NO_CASE),
        where=dict(shown.where) if shown else {},
        skip_reasons=dict(reasons.most_common()),
        undecided=dict(undecided.most_common()),
        max_diff=_largest(judged.values(), "max_diff"),
        max_rel_diff=_largest(judged.values(), "max_rel_diff"),
        mismatch_ratio=_largest(judged.values(), "mismatch_ratio"),
        rms_z=_largest(judged.values(), "rms_z"),
        max_z=_largest(judged.values(), "max_z"),
    )


def _evidence(
    declaration: Declaration, judged: dict[str, list[Finding]], closing: dict[str, Finding]
) -> dict[str, Any]:
    """The fields of a KernelSummary that come from evidence.py."""
    passed = {case: lines for case, lines in judged.items() if closing[case].verdict is Verdict.PASS}
    limits = evidence.detection_limits(passed)
    slope_error, slope_error_se = evidence.pooled_slope(judged)
    contract = evidence.contract_finding(judged)
    facts, numbers = (contract.facts, contract.numbers) if contract else ({}, {})
    low = declaration.numerics and below_floor(declaration.numerics, dtypes=declaration.dtypes)
    return {
        "contract": facts.get("contract"),
        "contract_agreement": numbers.get("agreement"),
        "contract_runner_up": facts.get("runner_up"),
        "contract_runner_up_agreement": numbers.get("runner_up_agreement") if "runner_up" in facts else None,
        "contract_problem": contract.message if contract and contract.verdict is not Verdict.PASS else None,
        "below_floor": low or (),
        "detection_limit": max(limits.values(), default=None),
        "detection_limits": limits,
        "element_limit": evidence.element_limit(passed),
        "rms_z_median": evidence.median_of(judged.values(), "rms_z"),
        "slope_error": slope_error,
        "slope_error_se": slope_error_se,
        "relations": evidence.relations_of(judged),
        "capabilities": evidence.capabilities_of(declaration, judged),
        "diagnosis": evidence.diagnosis_of(judged),
    }


def _attention(kernel: KernelSummary) -> tuple[bool, bool, int, str]:
    """Sort key: skipped, passed, unsure, failed; in a terminal the last is next to the prompt."""
    done = kernel.verdict in (Verdict.SKIP, Verdict.PASS)
    return (kernel.failed, not done, SEVERITY.index(kernel.verdict), kernel.name)


def _largest(cases: Iterable[Sequence[Finding]], name: str) -> float | None:
    values = [line.numbers[name] for lines in cases for line in lines if name in line.numbers]
    return max(values, key=_nan_is_largest, default=None)


def _badness(lines: Sequence[Finding]) -> tuple[float, ...]:
    """Order of cases: by verdict, then by the numbers that a user looks at first."""
    numbers = (_largest([lines], name) for name in ("max_z", "mismatch_ratio", "max_rel_diff"))
    known = [0.0 if value is None else _nan_is_largest(value)[1] for value in numbers]
    return (SEVERITY.index(case_verdict(lines).verdict), *known)


def _nan_is_largest(value: float) -> tuple[bool, float]:
    return (True, math.inf) if math.isnan(value) else (False, value)


_TOTALS = (
    Verdict.PASS,
    Verdict.FAIL,
    Verdict.PROVEN_WRONG,
    Verdict.VACUOUS,
    Verdict.INCONCLUSIVE,
    Verdict.CRASH,
    Verdict.TIMEOUT,
    Verdict.SKIP,
    Verdict.ERROR,
)
