"""Nights as a run would leave them, without a run."""

from __future__ import annotations

from moecheck.checks.finding import Verdict
from moecheck.history import Failure, Night, Result, Run

MACHINE = "a processor"


def result(subject: str = "mine", verdict: Verdict = Verdict.PASS, **changes: object) -> Result:
    """Of a kernel with four cases, all of which are as `verdict` says."""
    cases = tuple(f"act_and_mul/bf16/case-{number}" for number in range(4))
    failed = verdict in (Verdict.FAIL, Verdict.CRASH)
    values: dict[str, object] = {
        "subject": subject,
        "verdict": verdict,
        "op": "act_and_mul",
        "device": "" if verdict is Verdict.SKIP else "cpu",
        "judged": 0 if verdict is Verdict.SKIP else len(cases),
        "passed": len(cases) if verdict is Verdict.PASS else 0,
        "message": "" if verdict is Verdict.PASS else "as the test wants it",
        "failures": tuple(Failure(check="values", case=case, message="off") for case in cases) if failed else (),
        "passing": cases if verdict is Verdict.PASS else (),
    }
    return Result(**{**values, **changes})  # type: ignore[arg-type]  # the fields' types are those of the tests


def run(*results: Result, night: int = 0, label: str = "kernels", part: str = "kernels") -> Run:
    """The run of one night, on a day of its own."""
    return Run(
        run=f"{label}-{night:03}",
        part=part,
        label=label,
        started=day(night),
        seconds=1.0,
        command="moecheck kernels",
        machine=MACHINE,
        folder=f"/reports/{night}",
        results=results,
    )


def night_of(*runs: Run, night: int = 0, name: str = "cpu", exit_code: int = 0) -> Night:
    return Night(
        night=f"night-{night:03}",
        name=name,
        started=day(night),
        seconds=1.0,
        exit_code=exit_code,
        folder=f"/reports/{night}",
        machine=MACHINE,
        seed=night,
        runs=runs,
    )


def day(night: int) -> str:
    return f"2026-{1 + night // 28:02}-{1 + night % 28:02}T03:00:00+00:00"
