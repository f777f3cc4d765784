"""`moecheck new-kernel`: a commented file to start from."""

from __future__ import annotations

from keyword import iskeyword
from pathlib import Path

import click
from jinja2 import Environment, PackageLoader, StrictUndefined

from moecheck.cases import Case
from moecheck.errors import UsageError, check_known
from moecheck.kernel import BACKENDS
from moecheck.ops import OPS
from moecheck.oracle import spec_part
from moecheck.quantization import QUANTISED
from moecheck.runner.plan import array_arguments
from moecheck.spec import MoESpec


@click.command("new-kernel")
@click.argument("name")
@click.option("--op", required=True, metavar="OP", help="What it computes (moecheck list ops).")
@click.option("--backend", default="torch", show_default=True, metavar="B", help="Whose arrays it takes.")
def new_kernel(name: str, op: str, backend: str) -> int:
    """Write NAME.py, a kernel that raises Unsupported until you fill it in."""
    check_known("op", op, OPS)
    check_known("backend", backend, BACKENDS)
    if not name.isidentifier() or iskeyword(name):
        raise UsageError(f"{name!r} must be a Python name: letters, digits and underscores, no keyword.")
    path = Path(f"{name}.py")
    templates = Environment(loader=PackageLoader("moecheck.cli"), undefined=StrictUndefined, keep_trailing_newline=True)
    text = templates.get_template("kernel.py.j2").render(
        name=name,
        op=OPS[op],
        backend=backend,
        always=array_arguments(Case(op=op)),
        takes_spec=spec_part(op, MoESpec()) is not None,
        quantised=QUANTISED,
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{path} exists; choose another name or remove it.") from error
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error
    click.echo(f"Wrote {path}. Test it with: moecheck kernels --kernel {path}:{name}")
    return 0
