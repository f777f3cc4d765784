"""`moecheck list`: what there is to test, and with what."""

from __future__ import annotations

from collections.abc import Callable

import click
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moecheck.cli.options import color, cores, width
from moecheck.curated import cases_for
from moecheck.errors import check_known
from moecheck.identify.floor import below_floor
from moecheck.kernel import Declaration
from moecheck.model_record import NUMBERS
from moecheck.models import MODELS
from moecheck.ops import OPS
from moecheck.registry import discover
from moecheck.report.terminal import render
from moecheck.report.text import one_line
from moecheck.runner.pool import default_memory


@click.command("list")
@click.argument("what", default="kernels")
def list_all(what: str) -> int:
    """List kernels (default), ops, models, cases, or mutants."""
    check_known("list", what, _VIEWS)
    click.echo(render(_VIEWS[what](), width=width(), color=color()), nl=False)
    return 0


def _kernels() -> RenderableType:
    jobs = min(cores(), 8)
    discovery = discover((), op=None, backend=None, memory=default_memory(jobs), jobs=jobs)
    table = _table("kernel", "op", "backend", "runs on", "dtypes", "numerics")
    for found in sorted(discovery.found, key=lambda found: (found.declaration.op, found.declaration.name)):
        declaration = found.declaration
        table.add_row(
            one_line(declaration.name),
            declaration.op,
            declaration.backend,
            found.device,
            " ".join(declaration.dtypes),
            _contract(declaration),
        )
    notes = [Text(f"Skipped: {name}: {one_line(reason)}", style="dim") for name, reason in discovery.skipped.items()]
    notes += [Text(f"Broken: {name}: {one_line(reason)}", style="red") for name, reason in discovery.broken.items()]
    return Group(table, *notes)


def _contract(declaration: Declaration) -> str:
    """Whether rounding points are declared, and which of them are below the floor."""
    if declaration.numerics is None:
        return ""
    low = below_floor(declaration.numerics, dtypes=declaration.dtypes)
    return f"low: {' '.join(low)}" if low else "declared"


def _mutants() -> RenderableType:
    from moecheck.mutants import all_mutants
    from moecheck.scoring.checker import checker_mutants
    from moecheck.scoring.run import REAL_KERNELS

    table = _table("mutant", "class", "ops", "what is wrong")
    for one in sorted(all_mutants(), key=lambda one: (one.kind, one.id)):
        table.add_row(one.id, one.kind, " ".join(sorted(one.ops)), one.words)
    for source in REAL_KERNELS:
        table.add_row(source.name, "real kernels", source.op, source.words)
    for checker in checker_mutants():
        table.add_row(checker.name, "the checker", "", checker.words)
    return table


def _ops() -> RenderableType:
    table = _table("op", "computes", "arguments", "returns")
    for op in OPS.values():
        outputs = ", ".join(f"{out.name} [{', '.join(out.axes)}]" for out in op.outputs)
        arguments = ", ".join(f"{a.name} [{', '.join(a.axes)}]" if a.axes else a.name for a in op.args)
        table.add_row(op.name, op.summary, arguments, outputs)
    return table


def _models() -> RenderableType:
    columns = (
        "experts",
        "top_k",
        "hidden",
        "intermediate",
        "shared",
        "latent",
        "scoring",
        "groups",
        "factor",
        "source",
    )
    table = _table("model", *columns)
    table.columns[0].no_wrap = True
    for name, model in MODELS.items():
        routing = model.spec.routing
        groups = "" if routing.num_expert_groups == 1 else f"{routing.num_expert_groups}/{routing.topk_groups}"
        numbers = (model.num_experts, routing.top_k, model.hidden_size, model.intermediate_size)
        widths = (str(width or "") for width in (model.shared_intermediate_size, model.latent_size))
        factor, sources = (
            f"{routing.routed_scaling_factor:g}",
            ", ".join(f"{s.kind} {s.numbers}" for s in model.sources),
        )
        table.add_row(name, *map(str, numbers), *widths, routing.scoring, groups, factor, sources)
    letters = ", ".join(f"{letter} {meaning}" for letter, meaning in NUMBERS.items())
    explained = (
        "source: `library` is the default of transformers' configuration class, `read` a published configuration, "
        f"`recalled` was not looked up, `assumed` was not found. {letters}."
    )
    return Group(table, Text(explained, style="dim"))


def _cases() -> RenderableType:
    table = _table("case", "op", "dtype", "why it exists")
    for op in OPS:
        for case in cases_for(op, profile="default", seed=0, examples=0):
            table.add_row(case.name, op, case.dtype, case.reason)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


_VIEWS: dict[str, Callable[[], RenderableType]] = {
    "kernels": _kernels,
    "ops": _ops,
    "models": _models,
    "cases": _cases,
    "mutants": _mutants,
}
