"""From the report folder of one run, of any command, to the record that a history keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moecheck.checks.finding import FAILURES, Verdict
from moecheck.errors import UsageError
from moecheck.history.records import Failure, Result, Run
from moecheck.json_text import loads
from moecheck.report.folder import ReportFolder
from moecheck.report.results import KernelSummary
from moecheck.report.strict_json import number
from moecheck.report.summarise import Groups, case_verdict, decisive, group
from moecheck.report.text import one_line

MESSAGE = 500  # characters kept of a message
KERNEL_METRICS = (
    "max_diff",
    "max_rel_diff",
    "mismatch_ratio",
    "rms_z",
    "rms_z_median",
    "max_z",
    "slope_error",
    "contract_agreement",
    "detection_limit",
    "seconds",
)
BENCH_METRICS = ("ratio", "roofline_share")
BENCH_VERDICTS = {"timed": Verdict.PASS, "wrong": Verdict.FAIL, "failed": Verdict.ERROR, "skipped": Verdict.SKIP}
E2E_VERDICTS = {"pass": Verdict.PASS, "fail": Verdict.FAIL, "inconclusive": Verdict.INCONCLUSIVE}
SCORE = "score"  # the subject of all mutants together


def read_run(folder: Path, *, label: str | None = None, machine: str | None = None) -> Run:
    """The run whose report lies in `folder`; a link such as `latest` is followed.

    label: of the part in a night, by default the part's name. machine: by default the processor that the folder tells.
    Raises UsageError when the folder holds no finished run.
    """
    folder = folder.resolve()
    for file, part, read in _READERS:
        if (folder / file).is_file():
            environment = _json(folder / "environment.json")
            data = _json(folder / file)
            try:
                return Run(
                    run=folder.name,
                    part=part,
                    label=label or part,
                    started=str(data["started"]),
                    seconds=number(data["seconds"]),
                    command=str(data["command"]),
                    machine=machine or str(environment.get("cpu") or environment.get("machine") or "unknown"),
                    folder=str(folder),
                    git=data.get("git") or environment.get("git"),
                    profile=data.get("profile"),
                    seed=data.get("seed") if "seed" in data else _option(environment, "seed"),
                    results=tuple(read(folder, data)),
                )
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UsageError(f"{folder / file} cannot be read as a run ({error!r}).") from error
    names = ", ".join(file for file, _, _ in _READERS)
    raise UsageError(f"{folder} holds no finished run: none of {names} is there.")


def _kernels(folder: Path, data: dict[str, Any]) -> list[Result]:
    report = ReportFolder.open(folder)
    summary, groups = report.summary(), group(report.findings())
    results = [_kernel(kernel, groups) for kernel in summary.kernels]
    results += [
        Result(subject=entry.name, verdict=Verdict.SKIP, message=_short(entry.reason)) for entry in summary.skipped
    ]
    return results


def _kernel(kernel: KernelSummary, groups: Groups) -> Result:
    cases = groups.get(kernel.name, {})
    verdicts = {case: case_verdict(lines).verdict for case, lines in cases.items()}
    failures = []
    for case, lines in cases.items():
        if verdicts[case] in FAILURES:
            finding = decisive(lines)
            message = _short(finding.message)
            failures.append(Failure(check=finding.check, case=case, verdict=verdicts[case], message=message))
    metrics = {name: value for name in KERNEL_METRICS if (value := getattr(kernel, name)) is not None}
    if kernel.slope_error is not None and kernel.slope_error_se:
        metrics["slope_z"] = kernel.slope_error / kernel.slope_error_se
    return Result(
        subject=kernel.name,
        verdict=kernel.verdict,
        op=kernel.op,
        backend=kernel.backend,
        device=kernel.device,
        judged=kernel.cases,
        passed=kernel.passed_cases,
        message=_short(kernel.message),
        diagnosis=_short(kernel.diagnosis or ""),
        worst_case=kernel.worst_case or "",
        reproduce=kernel.reproduce or "",
        metrics=metrics,
        failures=tuple(failures),
        passing=tuple(case for case, verdict in verdicts.items() if verdict is Verdict.PASS),
    )


def _mutants(folder: Path, data: dict[str, Any]) -> list[Result]:
    """The score with its bar, false alarms as its failures; and each mutant, whose survival the bar covers."""
    alarms = [text for one in data["alarms"] for text in one["alarms"]] + list(data["baselines"].values())
    failures = [Failure(check="false alarm", message=_short(text)) for text in alarms]
    if not data["passed"] and not alarms:
        words = f"{number(data['score']):.1%} of the mutants are killed; the bar is {number(data['bar']):.0%}"
        failures.append(Failure(check=SCORE, message=words))
    tried = [one for one in data["mutants"] if not one["equivalent"]]
    score = Result(
        subject=SCORE,
        verdict=Verdict.PASS if data["passed"] else Verdict.FAIL,
        judged=len(tried),
        passed=sum(bool(one["killed"]) for one in tried),
        message=failures[0].message if failures else "",
        reproduce=data["command"],
        metrics={"score": number(data["score"]), "macro_average": number(data["macro_average"])},
        failures=tuple(failures),
    )
    return [score, *(_mutant(one) for one in tried)]


def _mutant(one: dict[str, Any]) -> Result:
    words = "" if one["killed"] else _short(f"{one['words']} is no longer seen: {one['why'] or 'no check sees it'}")
    return Result(
        subject=one["id"],
        verdict=Verdict.PASS if one["killed"] else Verdict.FAIL,
        op=" ".join(one["ops"]),
        judged=int(one["seeds"]),
        message=words,
        reproduce=f"moecheck mutants --mutant '{one['id']}'",
        covered=True,
        metrics={"p_kill": number(one["p_kill"])},
        failures=() if one["killed"] else (Failure(check="survived", message=words),),
    )


def _bench(folder: Path, data: dict[str, Any]) -> list[Result]:
    results = []
    for one in data["entries"]:
        verdict, reason = BENCH_VERDICTS[one["status"]], _short(one["reason"])
        metrics = {name: number(one[name]) for name in BENCH_METRICS if one[name] is not None}
        if one["timing"] is not None:
            metrics["seconds"] = number(one["timing"]["median"])
        results.append(
            Result(
                subject=" · ".join([one["kernel"], one["op"], one["model"], one["weights"], f"{one['tokens']} tokens"]),
                verdict=verdict,
                op=one["op"],
                device=one["device"],
                judged=int(verdict is not Verdict.SKIP),
                passed=int(verdict is Verdict.PASS),
                message=reason,
                worst_case=one["case"],
                reproduce=data["command"],
                metrics=metrics,
                failures=(Failure(check=one["status"], case=one["case"], verdict=verdict, message=reason),)
                if verdict in FAILURES
                else (),
                passing=(one["case"],) if verdict is Verdict.PASS else (),
            )
        )
    return results


def _e2e(folder: Path, data: dict[str, Any]) -> list[Result]:
    verdict = E2E_VERDICTS[data["verdict"]["outcome"]]
    reason = _short(data["verdict"]["reason"])
    signals = data["signals"]
    failures = [
        Failure(check=one["name"], message=_short(one["message"])) for one in signals if one["outcome"] == "fail"
    ]
    if verdict is Verdict.FAIL and not failures:
        failures.append(Failure(check="e2e", message=reason))
    metrics = {one["name"]: number(one["value"]) for one in signals if one["value"] is not None}
    return [
        Result(
            subject=f"{data['facts']['name']} · {data['candidate']['arm']}",
            verdict=verdict,
            op="e2e",
            judged=sum(one["outcome"] != "absent" for one in signals),
            passed=sum(one["outcome"] == "pass" for one in signals),
            message="" if verdict is Verdict.PASS else reason,
            reproduce=data["command"],
            metrics=metrics,
            failures=tuple(failures),
        )
    ]


def _json(path: Path) -> dict[str, Any]:
    try:
        data = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} cannot be read as a run: it is no JSON object.")
    return data


def _option(environment: dict[str, Any], name: str) -> Any:
    options = environment.get("options")
    return options.get(name) if isinstance(options, dict) else None


def _short(text: str) -> str:
    line = one_line(str(text))
    return line if len(line) <= MESSAGE else line[: MESSAGE - 1] + "…"


_READERS: tuple[tuple[str, str, Callable[[Path, dict[str, Any]], list[Result]]], ...] = (
    ("summary.json", "kernels", _kernels),
    ("mutants.json", "mutants", _mutants),
    ("bench.json", "bench", _bench),
    ("e2e.json", "e2e", _e2e),
)
RESULT_FILES = tuple(file for file, _, _ in _READERS)  # of which a finished run's folder has one
