"""`moecheck kernels`: property-test every kernel that can run here."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from moecheck.checks.finding import FAILURES, Finding, Verdict
from moecheck.checks.judge import Limits
from moecheck.cli.grids import full_size_plan, sweep_plan, usual_plan
from moecheck.cli.options import color, cores, not_negative, parse_require, parse_tokens, positive, width
from moecheck.cli.progress import LiveProgress
from moecheck.cli.where import cluster_of, find_kernels, ray_options, run_plans
from moecheck.curated import PROFILES, draw_ahead
from moecheck.errors import UsageError, check_known
from moecheck.formats import FORMATS
from moecheck.json_text import loads
from moecheck.kernel import BACKENDS, Declaration
from moecheck.models import shard_of
from moecheck.ops import OPS
from moecheck.registry import Discovery
from moecheck.report.environment import git_commit
from moecheck.report.folder import ReportFolder
from moecheck.report.launched import launched_lines
from moecheck.report.results import RunSummary
from moecheck.report.summarise import summarise
from moecheck.report.terminal import render, run_view
from moecheck.report.text import one_line
from moecheck.runner.plan import Plan
from moecheck.runner.pool import default_memory, full_size_memory
from moecheck.runner.run import KernelRun, Settings
from moecheck.runner.sanitizer import TOOLS, find_sanitizer, on_device, run_sanitizer
from moecheck.typed import check_types

SLOWER = 15.0  # a call under compute-sanitizer, with the start of its process


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What decides about a run's findings; kept in environment.json so that `--resume` can go on."""

    tol: float
    max_mismatch: float | None
    kernel: tuple[str, ...]
    op: str | None
    backend: str | None
    model: str | None
    dtype: str | None
    profile: str
    seed: int
    examples: int | None
    require: tuple[str, ...] = ()
    tokens: str | None = None
    sanitizer: str | None = None
    sweep: bool = False
    device_trials: bool = True


@click.command()
@click.option("--tol", type=float, default=1e-2, show_default=True, callback=not_negative, help="Of mismatch_ratio.")
@click.option(
    "--max-mismatch", type=float, callback=not_negative, help="Hard cap on mismatch_ratio [what rounding explains]."
)
@click.option("--kernel", multiple=True, metavar="SPEC", help="Built-in name, file.py:function or module:function.")
@click.option(
    "--require",
    multiple=True,
    metavar="FIELD=FORMAT",
    help="Fail kernels that round a store narrower, declared or not (topk_weights=fp32).",
)
@click.option("--op", metavar="OP", help="Only this op; for an undeclared function: what it computes.")
@click.option("--backend", metavar="B", help="Only this backend; for an undeclared function: whose arrays it takes.")
@click.option("--model", metavar="NAME", help="Only the layer of this model (moecheck list models).")
@click.option(
    "--tokens", metavar="T,...", help="With --model: only its layer in full size, with so many tokens (16,4096)."
)
@click.option(
    "--device-trials/--no-device-trials", default=True, help="On CUDA, also by graphs and on other streams [yes]."
)
@click.option("--sweep", is_flag=True, help="Only a grid of small cases, and which device kernels they reach.")
@click.option(
    "--sanitizer",
    metavar="TOOL",
    help=f"Only one small case of each kernel under compute-sanitizer: {', '.join(TOOLS)}.",
)
@click.option("--dtype", metavar="D", help="Only fp32, fp16 or bf16.")
@click.option("--profile", default="default", show_default=True, metavar="P", help="quick, default or nightly.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all drawn inputs.")
@click.option("--examples", type=click.IntRange(0), help="Drawn cases per op [by profile].")
@click.option("--timeout", type=float, default=20.0, show_default=True, callback=positive, help="Seconds for one call.")
@click.option("--jobs", type=click.IntRange(1), default=None, help="Kernels at a time [number of cores, 8 at most].")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports"), show_default=True, help="Parent folder."
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Go on with a run that was cut off.")
@ray_options
@click.pass_context
def kernels(
    context: click.Context,
    /,
    timeout: float,
    jobs: int | None,
    out: Path,
    resume: Path | None,
    ray: str | None,
    ray_cpus: int | None,
    **values: Any,
) -> int:
    """Test kernels against float64 references on many cases, and write a report."""
    if resume is not None:
        _check_resume_alone(context)
        folder = ReportFolder.open(resume)
        options = _read_options(folder.path)
    else:
        options = Options(**values)
        _check_names(options)
        folder = None
    require = parse_require(options.require)
    if ray is not None and options.sanitizer is not None:
        raise UsageError("--sanitizer runs on this machine; leave out --ray.")
    cluster = context.with_resource(cluster_of(ray, ray_cpus))
    program = None if options.sanitizer is None else find_sanitizer()
    importing = jobs or min(cores(), 8)
    jobs = jobs or (importing if options.tokens is None else 1)  # full-size weights are many gigabytes
    settings = Settings(
        limits=Limits(tol=options.tol, max_mismatch=options.max_mismatch),
        timeout=timeout,
        memory=default_memory(jobs) if options.tokens is None else full_size_memory(jobs),
        jobs=jobs,
        threads=max(1, cores() // jobs) if cluster is None else cluster.cpus,
        draw_all=options.profile == "nightly",
        relations="named" if options.profile == "nightly" else "few",
        require=require,
        profile=options.sweep,
        device_trials=options.device_trials,
    )
    started, start = datetime.now(UTC), time.monotonic()
    progress = LiveProgress()
    # Kernels are imported in processes of their own; their cases are drawn meanwhile.
    with progress.searching(), ThreadPoolExecutor(1) as ahead:
        if options.tokens is None:
            ahead.submit(draw_ahead, options.op, profile=options.profile, seed=options.seed, examples=options.examples)
        discovery = _select(
            find_kernels(cluster, options.kernel, op=options.op, backend=options.backend, memory=settings.memory),
            options,
        )
    plans = _plans(discovery, options)
    if options.sanitizer is not None:
        plans = on_device(plans)
    if folder is None:
        folder = ReportFolder.create(out)
        folder.write_environment({**asdict(options), "timeout": timeout, "jobs": jobs, "ray": ray})
    context.with_resource(folder.held())
    earlier = folder.resume()
    done = {(finding.kernel, finding.case) for finding in earlier}

    def sink(plan: Plan, findings: list[Finding]) -> None:
        folder.append(findings)
        progress.advance(plan, findings)

    broken = _broken_declarations(discovery)
    for declaration in broken:
        if (declaration.name, "import") not in done:
            folder.append(_import_findings(declaration.name, discovery.broken[declaration.name]))
    with progress.running(plans, done):
        runs = [] if options.sanitizer else run_plans(cluster, plans, settings, sink, done=done)
        if program is not None and options.sanitizer is not None:
            run_sanitizer(
                plans, options.sanitizer, program=program, timeout=timeout * SLOWER, jobs=min(jobs, 2), sink=sink
            )
    summary = summarise(
        folder.findings(),
        [*(plan.declaration for plan in plans), *broken],
        command=_command(options),
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - start,
        git=git_commit(),
        skipped=discovery.skipped,
        devices={plan.declaration.name: plan.device for plan in plans},
        interpreted={run.plan.declaration.name: run.seconds / jobs for run in runs if run.plan.interpreted},
        tol=options.tol,
        profile=options.profile,
        seed=options.seed,
        reproduce=_Reproducer(folder, plans, runs, options),
    )
    notes = folder.finish(summary, [run.picture for run in runs if run.picture is not None])
    click.echo(
        render(run_view(summary, width=width(), report=_shown(folder.path)), width=width(), color=color()), nl=False
    )
    for line in launched_lines(folder.findings()) if options.sweep else ():
        click.echo(one_line(line))
    for note in notes:
        click.echo(f"moecheck: {note}", err=True)
    return exit_code(summary, asked=bool(options.kernel))


def exit_code(summary: RunSummary, *, asked: bool = False) -> int:
    """0 all passed, 1 something failed, 4 something is undecided or nothing was really checked.

    asked: whether the kernels were asked for by name; then each of them must have passed something.
    """
    if any(kernel.verdict in FAILURES for kernel in summary.kernels):
        return 1
    undecided = summary.totals.get(Verdict.INCONCLUSIVE.value, 0)
    unchecked = asked and (bool(summary.skipped) or not all(kernel.passed_cases for kernel in summary.kernels))
    return 0 if summary.totals.get(Verdict.PASS.value, 0) and not undecided and not unchecked else 4


def _check_names(options: Options) -> None:
    for spec, times in Counter(options.kernel).items():
        if times > 1:
            raise UsageError(f"--kernel {spec} is given {times} times; once is enough.")
    for kind, value, known in (
        ("op", options.op, OPS),
        ("backend", options.backend, BACKENDS),
        ("dtype", options.dtype, FORMATS),
        ("profile", options.profile, PROFILES),
        ("sanitizer", options.sanitizer, TOOLS),
    ):
        if value is not None:
            check_known(kind, value, known)
    if options.model is not None:
        shard_of(options.model)
    if options.sweep and (options.tokens is not None or options.sanitizer is not None):
        raise UsageError("--sweep has cases of its own; leave out --tokens and --sanitizer.")
    if options.tokens is not None:
        if options.model is None:
            raise UsageError("--tokens needs --model: it is about that model's layer in full size.")
        parse_tokens(options.tokens)


def _check_resume_alone(context: click.Context) -> None:
    """The options of a resumed run are those it began with."""
    free = {"resume", "timeout", "jobs", "ray", "ray_cpus"}
    given = [
        name
        for name in context.params
        if name not in free and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(f"--resume goes on with the options of that run; leave out --{given[0].replace('_', '-')}.")


def _read_options(folder: Path) -> Options:
    path = folder / "environment.json"
    try:
        saved = loads(path.read_text(encoding="utf-8"))["options"]
        # Folders of earlier releases lack the newer ones.
        saved = {"require": (), "tokens": None, "sanitizer": None, "sweep": False, "device_trials": False, **saved}
        values = {name: saved[name] for name in Options.__dataclass_fields__}
        options = Options(**{**values, "kernel": tuple(values["kernel"]), "require": tuple(values["require"] or ())})
        check_types(options)
        return options
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} does not tell the options of the run ({error}); start a new one.") from error


def _select(discovery: Discovery, options: Options) -> Discovery:
    """Narrow what was found by --op and --backend; without a match that is a usage error."""
    found = [
        kernel
        for kernel in discovery.found
        if options.op in (None, kernel.declaration.op) and options.backend in (None, kernel.declaration.backend)
    ]
    if not found and not discovery.skipped and not discovery.broken:
        raise UsageError(f"No kernel has op={options.op or 'any'} and backend={options.backend or 'any'}.")
    return Discovery(found=found, skipped=discovery.skipped, broken=discovery.broken)


def _plans(discovery: Discovery, options: Options) -> list[Plan]:
    plans = []
    for kernel in discovery.found:
        if options.tokens is not None:
            plan = full_size_plan(
                kernel, model=str(options.model), tokens=options.tokens, dtype=options.dtype, seed=options.seed
            )
            plans += [] if plan is None else [plan]
            continue
        if options.sweep:
            plans.append(sweep_plan(kernel, dtype=options.dtype, seed=options.seed))
            continue
        plans.append(
            usual_plan(
                kernel,
                profile=options.profile,
                seed=options.seed,
                model=options.model,
                examples=options.examples,
                dtype=options.dtype,
                alone=bool(options.op or options.kernel),
            )
        )
    return plans


def _broken_declarations(discovery: Discovery) -> list[Declaration]:
    """Stand-ins for kernels whose import fails: they appear in the report with the verdict ERROR."""
    return [
        Declaration(
            name=name,
            op="?",
            backend="?",
            dtypes=(),
            numerics=None,
            deterministic=None,
            batch_invariant=None,
            tie=None,
            specs=(),
            arguments=(),
            required=(),
            origin=name,
            spec_string=name,
        )
        for name in discovery.broken
    ]


def _import_findings(name: str, reason: str) -> list[Finding]:
    message = reason[0].upper() + reason[1:]
    return [
        Finding(kernel=name, case="import", check=check, verdict=Verdict.ERROR, message=message)
        for check in ("import", "case")
    ]


class _Reproducer:
    """Saves the case that a reader wants to see again, and names the command that runs it; no case that passes."""

    def __init__(self, folder: ReportFolder, plans: list[Plan], runs: list[KernelRun], options: Options) -> None:
        self._folder, self._options = folder, options
        self._failing = {run.plan.declaration.name: run.failing for run in runs if run.failing is not None}
        self._cases = {(plan.declaration.name, case.id): case for plan in plans for case in plan.cases}
        self._targets = {plan.declaration.name: plan.target for plan in plans}

    def __call__(self, kernel: str, case_id: str) -> str:
        case = self._failing.get(kernel) or self._cases.get((kernel, case_id))
        if case is None:
            return f"moecheck kernels --kernel {shlex.quote(kernel)}"
        target = self._targets[kernel]
        record = {
            "id": case.digest,
            "spec_string": target.spec_string,
            "op": target.op,
            "backend": target.backend,
            "tol": self._options.tol,
            "max_mismatch": self._options.max_mismatch,
            "require": list(self._options.require),
            "found_as": case_id,
            "case": case.to_json(),
        }
        return f"moecheck replay {shlex.quote(_shown(self._folder.write_case(kernel, record)))}"


def _command(options: Options) -> str:
    parts = ["moecheck", "kernels", "--tol", f"{options.tol:g}"]
    for name in ("max_mismatch", "op", "backend", "model", "tokens", "sanitizer", "dtype", "examples"):
        value = getattr(options, name)
        if value is not None:
            parts += [f"--{name.replace('_', '-')}", str(value)]
    flags = (("--sweep", options.sweep), ("--no-device-trials", not options.device_trials))
    parts += [flag for flag, given in flags if given]
    for rule in options.require:
        parts += ["--require", rule]
    for spec in options.kernel:
        parts += ["--kernel", spec]
    if options.profile != "default":
        parts += ["--profile", options.profile]
    return shlex.join([*parts, "--seed", str(options.seed)])


def _shown(path: Path) -> str:
    """Relative to here where that is shorter to read."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
