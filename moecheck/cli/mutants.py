"""`moecheck mutants`: how many known bugs the checks see, and whether they accuse correct kernels."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from moecheck.cli.options import color, cores, width
from moecheck.cli.where import cluster_of, ray_options
from moecheck.errors import check_known
from moecheck.ops import OPS
from moecheck.report.environment import git_commit
from moecheck.report.mutants import mutants_folder, write_score
from moecheck.report.mutants_view import score_view
from moecheck.report.terminal import render


@click.command()
@click.option("--profile", default="default", show_default=True, metavar="P", help="quick, default or nightly.")
@click.option("--mutant", multiple=True, metavar="NAME", help="Only this mutant (moecheck list mutants).")
@click.option("--op", multiple=True, metavar="OP", help="Only mutants of this op.")
@click.option("--seeds", type=click.IntRange(1), help="In how many each is tried [20; quick: 3].")
@click.option("--jobs", type=click.IntRange(1), help="Processes [number of cores, 8 at most].")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports"), show_default=True, help="Parent folder."
)
@ray_options
@click.pass_context
def mutants(
    context: click.Context,
    /,
    profile: str,
    mutant: tuple[str, ...],
    op: tuple[str, ...],
    seeds: int | None,
    jobs: int | None,
    out: Path,
    ray: str | None,
    ray_cpus: int | None,
) -> int:
    """Plant known bugs in correct kernels, and count how many the checks see.

    Exit code 1 when the score is below the profile's bar or a correct kernel was accused.
    """
    from moecheck.scoring.run import PROFILES, Plan, known_names, run_score  # it needs all references

    check_known("profile", profile, PROFILES)
    names = known_names()
    for name in mutant:
        check_known("mutant", name, names)
    for name in op:
        check_known("op", name, OPS)
    values: dict[str, Any] = dict(PROFILES[profile])
    if seeds is not None:
        values |= {"seeds": seeds, "kernel_seeds": min(seeds, values["kernel_seeds"])}
        values["undeclared_seeds"] = min(seeds, values.get("undeclared_seeds", 0))
    plan = Plan(
        profile=profile,
        mutants=mutant,
        ops=op,
        jobs=jobs or min(cores(), 8),
        everything=not (mutant or op),
        **values,
    )
    cluster = context.with_resource(cluster_of(ray, ray_cpus))
    folder = mutants_folder(out)
    command = _command(profile, mutant, op, seeds)
    with _progress() as advance:
        score = run_score(plan, command=command, git=git_commit(), advance=advance, cluster=cluster)
    write_score(folder, score, asdict(plan))
    click.echo(render(score_view(score, width=width(), report=_shown(folder)), width=width(), color=color()), nl=False)
    return 0 if score.passed else 1


@contextmanager
def _progress() -> Iterator[Any]:
    """A live bar on a terminal; into a pipe nothing until the result."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
        transient=True,
    )  # fmt: skip
    tasks: dict[int, TaskID] = {}
    with bar:

        def advance(what: str, done: int, total: int) -> None:
            if total not in tasks:
                tasks[total] = bar.add_task(what, total=total)
            bar.update(tasks[total], completed=done, description=what)

        yield advance


def _command(profile: str, mutant: tuple[str, ...], op: tuple[str, ...], seeds: int | None) -> str:
    parts = ["moecheck", "mutants"]
    parts += ["--profile", profile] if profile != "default" else []
    for name in mutant:
        parts += ["--mutant", name]
    for name in op:
        parts += ["--op", name]
    return shlex.join([*parts, *(["--seeds", str(seeds)] if seeds is not None else [])])


def _shown(path: Path) -> str:
    """Relative to here where that is shorter to read."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
