"""`moecheck replay`: one case again, verbosely."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from moecheck.cases import Case, read_case
from moecheck.checks.finding import FAILURES, Finding, Verdict
from moecheck.checks.judge import Limits
from moecheck.cli.options import color, cores, not_negative, parse_require, positive, width
from moecheck.errors import CaseError, UsageError
from moecheck.json_text import loads
from moecheck.oracle import Oracle
from moecheck.registry import discover
from moecheck.report.replay import replay_view
from moecheck.report.summarise import CASE, summarise
from moecheck.report.terminal import render
from moecheck.runner.judges import Here
from moecheck.runner.plan import Plan
from moecheck.runner.pool import default_memory
from moecheck.runner.run import Settings, run_kernel
from moecheck.typed import fits


@click.command()
@click.argument("case")
@click.option("--kernel", metavar="SPEC", help="Another kernel than the one in the case file.")
@click.option("--tol", type=float, callback=not_negative, help="Another tolerance than the one in the case file.")
@click.option("--timeout", type=float, default=60.0, show_default=True, callback=positive, help="Seconds for the call.")
def replay(case: str, kernel: str | None, tol: float | None, timeout: float) -> int:
    """Run CASE again: a file from a report's cases folder, or the JSON of a case itself."""
    record, extra = _read(case)
    spec = kernel or extra.get("spec_string")
    if not spec:
        raise UsageError("The case names no kernel; say which one with --kernel SPEC.")
    memory = default_memory(1)
    op, backend = (None, None) if kernel else (extra.get("op"), extra.get("backend"))
    found = discover([str(spec)], op=op or record.op, backend=backend, memory=memory, jobs=1).found
    if not found:
        raise UsageError(f"The kernel {spec} cannot run here; moecheck list says why.")
    declaration = found[0].declaration
    if declaration.op != record.op:
        raise UsageError(f"{declaration.name} computes {declaration.op}, the case is one of {record.op}.")
    limit = next(value for value in (tol, _number(extra, "tol"), 1e-2) if value is not None)
    settings = Settings(
        limits=Limits(tol=limit, max_mismatch=_number(extra, "max_mismatch")),
        timeout=timeout,
        memory=memory,
        jobs=1,
        threads=cores(),
        shrink=False,
        draw_all=True,
        relations="every",
        require=_required(extra),
    )
    plan = Plan(
        target=found[0].target,
        declaration=declaration,
        device=found[0].device,
        cases=(record,),
        import_seconds=found[0].import_seconds,
    )
    findings: list[Finding] = []
    run = run_kernel(plan, settings, lambda _, lines: findings.extend(lines), judging=Here(Oracle()), done=set())
    summary = summarise(findings, [declaration], command="moecheck replay", started="", seconds=run.seconds)
    view = replay_view(_last(findings), picture=run.picture, width=width(), kernel=summary.kernels[0])
    click.echo(render(view, width=width(), color=color()), nl=False)
    return _code(findings[-1].verdict)


def _code(verdict: Verdict) -> int:
    if verdict in FAILURES:
        return 1
    return 0 if verdict is Verdict.PASS else 4


def _last(findings: list[Finding]) -> list[Finding]:
    """The last report of the case: a diagnosis makes a second one, with all findings of the first."""
    closing = [index for index, finding in enumerate(findings) if finding.check == CASE]
    return findings[closing[-2] + 1 if len(closing) > 1 else 0 :]


def _number(extra: dict[str, Any], name: str) -> float | None:
    value = extra.get(name)
    if value is None:
        return None
    if not fits(value, float) or not (value >= 0 and value < math.inf):
        raise CaseError(f"`{name}` of the case must be a finite number of at least 0, not {value!r}.")
    return float(value)


def _required(extra: dict[str, Any]) -> dict[str, str]:
    rules = extra.get("require") or []
    if not isinstance(rules, list):
        raise CaseError(f"`require` of the case must be a list of FIELD=FORMAT, not {rules!r}.")
    return parse_require(map(str, rules))


def _read(text: str) -> tuple[Case, dict[str, Any]]:
    if not text.lstrip().startswith("{"):
        return read_case(Path(text))
    try:
        data = loads(text)
    except ValueError as error:
        raise CaseError(f"The case is not complete JSON: {error}.") from error
    return Case.from_json(data.get("case", data)), {k: v for k, v in data.items() if "case" in data and k != "case"}
