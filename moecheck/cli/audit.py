"""`moecheck audit`: what a tolerance is worth."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from moecheck.audit import PRESETS, AuditRecord, Criterion, Draw, Preset, Recipe, audit, audit_presets, rank
from moecheck.audit.record import Ranked
from moecheck.audit.run import HINDSIGHT, SEEDS, Told
from moecheck.audit.subject import OPS
from moecheck.audit.view import Grid, lines_of, ranking_grid, record_view, records_grid, settings_grid
from moecheck.cases import Case
from moecheck.cli.options import color, cores, not_negative, width
from moecheck.errors import UsageError, check_known
from moecheck.formats import FORMATS
from moecheck.report.strict_json import dumps as strict
from moecheck.report.terminal import render
from moecheck.spec import MoESpec, RoutingSpec

# Option -> field of Criterion.
TOLERANCES = {
    "atol": "atol",
    "rtol": "rtol",
    "share": "share",
    "max_abs": "max_abs",
    "calc_diff": "max_calc_diff",
    "cosine": "min_cosine",
    "relative_l2": "max_relative_l2",
}
STDS = ("hidden_std", "w13_std", "w2_std")
SIZES = {"tokens": 64, "experts": 8, "top_k": 2, "hidden": 256, "intermediate": 128}


def _tolerance(name: str, help_: str) -> Callable[[Any], Any]:
    return click.option(name, type=float, callback=not_negative, help=help_)


def _size(name: str) -> Callable[[Any], Any]:
    default = SIZES[name.lstrip("-").replace("-", "_")]
    return click.option(name, type=click.IntRange(min=1), help=f"Size of the case.  [default: {default}]")


@click.command("audit")
@click.option("--preset", "presets", multiple=True, metavar="NAME", help="A published test: its tolerance and inputs.")
@click.option("--all", "everything", is_flag=True, help="All presets, and all tolerances on the same outputs.")
@click.option("--list", "names", is_flag=True, help="The presets and where they come from.")
@_tolerance("--atol", "An element matches where |d| <= atol + rtol |ref|.")
@_tolerance("--rtol", "See --atol.")
@click.option("--share", type=float, help="Of the elements that must match.  [default: 1]")
@_tolerance("--max-abs", "Limit of max|d|.")
@_tolerance("--calc-diff", "Limit of 1 - 2 <x, y> / (<x, x> + <y, y>).")
@click.option("--cosine", type=float, help="Least cosine similarity.")
@_tolerance("--relative-l2", "Limit of |out - ref| / |ref|.")
@click.option("--op", help=f"What is tested: {', '.join(OPS)}.  [default: fused_experts]")
@click.option("--dtype", help="Format of activations and weights.  [default: bf16]")
@_size("--tokens")
@_size("--experts")
@_size("--top-k")
@_size("--hidden")
@_size("--intermediate")
@_tolerance("--hidden-std", "Normal hidden states of this standard deviation, instead of moecheck's own inputs.")
@_tolerance("--w13-std", "Standard deviation of w13, 1 if one of the others is given.")
@_tolerance("--w2-std", "Standard deviation of w2, 1 if one of the others is given.")
@click.option("--seeds", type=click.IntRange(min=1), default=SEEDS, show_default=True, help="Draws of the inputs.")
@click.option("--seed", type=int, default=0, show_default=True, help="The first of them.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes.  [default: as many as there are cores]")
@click.option("--format", "style", type=click.Choice(["text", "json", "markdown"]), default="text", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the JSON there too.")
def audit_command(**options: Any) -> int:
    """Say what a tolerance is worth: how many sigma it is, whether zeros pass, which known bugs do.

    With --atol 2e-2 --rtol 0, on moecheck's inputs or on normal ones of your sizes; with --preset, a published test on
    its own inputs, or your tolerance on them. A tolerance counts only if it accepts the outputs of right kernels.
    """
    if options["names"]:
        click.echo(render(_list().rich(), width=width(), color=color()), nl=False)
        return 0
    presets, criterion = _chosen(options), _criterion(options)
    jobs = options["jobs"] or cores()
    ranks: list[Ranked] = []
    with _progress() as told:
        if presets:
            if criterion is not None:
                presets = [_with(preset, criterion) for preset in presets]
            shared = {"seeds": options["seeds"], "seed": options["seed"], "jobs": jobs, "told": told}
            records = audit_presets(presets, **shared)
            ranks = rank(presets, **shared) if options["everything"] else []
        else:
            if criterion is None:
                raise UsageError("audit needs a tolerance (--atol, --calc-diff, ...), a --preset, or --all.")
            case, recipe = _case(options), _recipe(options)
            records = [audit(criterion, case, recipe=recipe, seeds=options["seeds"], jobs=jobs, told=told)]
    document = strict({"schema": 1, "audits": [r.to_json() for r in records], "ranking": _plain(ranks)}, indent=1)
    if options["out"] is not None:
        _write(options["out"], document)
    if options["style"] == "json":
        click.echo(document)
    elif options["style"] == "markdown":
        click.echo(_markdown(records, ranks), nl=False)
    else:
        click.echo(render(_view(records, ranks), width=width(), color=color()), nl=False)
    return 0


def _chosen(options: dict[str, Any]) -> list[Preset]:
    """The presets that were asked for; a UsageError where other options contradict them."""
    names = list(PRESETS) if options["everything"] else list(options["presets"])
    if options["everything"] and options["presets"]:
        raise UsageError("--all has every preset; leave out --preset.")
    for name in names:
        check_known("preset", name, PRESETS)
    for name in ("op", "dtype", *SIZES, *STDS):
        if names and options[name] is not None:
            raise UsageError(f"A preset has its own inputs; leave out --{name.replace('_', '-')}.")
    if options["everything"] and any(options[name] is not None for name in TOLERANCES):
        raise UsageError("--all tries the presets' own tolerances; leave out yours, or name a --preset.")
    return [PRESETS[name] for name in dict.fromkeys(names)]


def _criterion(options: dict[str, Any]) -> Criterion | None:
    """The tolerance that was given, if any."""
    given = {field: options[name] for name, field in TOLERANCES.items() if options[name] is not None}
    return Criterion(**given) if given else None


def _with(preset: Preset, criterion: Criterion) -> Preset:
    """The preset's inputs with another criterion."""
    settings = tuple(replace(setting, criterion=None) for setting in preset.settings)
    return replace(preset, criterion=criterion, settings=settings)


def _case(options: dict[str, Any]) -> Case:
    op, dtype = options["op"] or "fused_experts", options["dtype"] or "bf16"
    check_known("op to audit", op, OPS)
    check_known("dtype", dtype, FORMATS)
    sizes = {name: default if options[name] is None else options[name] for name, default in SIZES.items()}
    return Case(
        op=op,
        dtype=dtype,
        spec=MoESpec(routing=RoutingSpec(top_k=sizes["top_k"])),
        num_tokens=sizes["tokens"],
        num_experts=sizes["experts"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["intermediate"],
        seed=options["seed"],
    )


def _recipe(options: dict[str, Any]) -> Recipe | None:
    """Normal inputs of the given standard deviations, if any is given."""
    if all(options[name] is None for name in STDS):
        return None
    hidden, w13, w2 = (Draw(std=1.0 if options[name] is None else options[name]) for name in STDS)
    return Recipe(hidden=hidden, w13=w13, w2=w2)


def _list() -> Grid:
    rows = [(preset.name, preset.criterion.words(), preset.source) for preset in PRESETS.values()]
    return Grid(columns=("preset", "accepts", "source"), rows=tuple(rows), left=3, fixed=True)


def _view(records: list[AuditRecord], ranks: list[Ranked]) -> RenderableType:
    if not ranks:
        views = [record_view(record) for record in records]
        return Group(*(part for view in views for part in (view, Text()))) if len(views) > 1 else views[0]
    return Group(
        Text("Published tests on their own inputs", style="bold"),
        records_grid(records).rich(),
        Text(),
        Text("All tolerances on the same outputs, moecheck's bf16 corpus", style="bold"),
        ranking_grid(ranks, hindsight=HINDSIGHT).rich(),
    )


def _markdown(records: list[AuditRecord], ranks: list[Ranked]) -> str:
    if ranks:
        tables = [records_grid(records).markdown(), ranking_grid(ranks, hindsight=HINDSIGHT).markdown()]
        return "\n".join(tables)
    parts = []
    for record in records:
        lines = "\n".join(f"- {line}" for line in lines_of(record))
        parts.append(f"### {record.name}: {record.criterion.words()}\n\n{settings_grid(record).markdown()}\n{lines}\n")
    return "\n".join(parts)


def _plain(ranks: list[Ranked]) -> list[dict[str, object]]:
    names = Ranked.__dataclass_fields__
    return [{**{name: getattr(row, name) for name in names}, "counts": row.counts} for row in ranks]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write --out {path}: {error.strerror}.") from error


@contextmanager
def _progress() -> Iterator[Told | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("auditing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("audit", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
