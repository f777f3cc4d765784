"""`moecheck check`: judges calls that were captured elsewhere."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import Limits
from moecheck.cli.options import color, not_negative, width
from moecheck.errors import HarnessError, MoecheckError, UsageError, check_known
from moecheck.json_text import loads
from moecheck.ops import OPS
from moecheck.report.strict_json import dumps as strict
from moecheck.report.terminal import render
from moecheck.report.text import count
from moecheck.spec import MoESpec
from moecheck.testing.dump import Dump, read_dump
from moecheck.testing.examine import Examined, examine
from moecheck.testing.view import examined_view

# Exit codes from worst to best: what could not be judged comes before what is wrong, as in grep and its kin.
WORST = (3, 2, 1, 4, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What became of one dump: its examination, or the sentence that says why there is none."""

    path: str
    code: int
    dump: Dump | None = None
    examined: Examined | None = None
    error: str = ""


@click.command()
@click.argument("dumps", nargs=-1, required=True, metavar="DUMP...")
@click.option("--op", help="What was computed, for dumps that do not say it and fit several ops.")
@click.option("--spec", metavar="SPEC.json", help="A MoESpec as JSON, instead of the dump's own semantics.")
@click.option("--tol", type=float, default=1e-2, show_default=True, callback=not_negative, help="Of mismatch_ratio.")
@click.option("--max-mismatch", type=float, callback=not_negative, help="Hard cap on mismatch_ratio; none by default.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(
    dumps: tuple[str, ...], op: str | None, spec: str | None, tol: float, max_mismatch: float | None, style: str
) -> int:
    """Judge captured calls: safetensors files that moecheck.testing.capture wrote, or others with the same names.

    A DUMP holds an op's arguments and outputs by the names of `moecheck list ops`. Each is judged as `moecheck kernels`
    judges a kernel's run; one that cannot be read is named, and the others are still judged.
    """
    if op is not None:
        check_known("op", op, OPS)
    semantics = None if spec is None else read_spec(spec)
    limits = Limits(tol=tol, max_mismatch=max_mismatch)
    checked = []
    for one in _checked(dumps, op, semantics, limits):
        checked.append(one)
        if one.error:
            click.echo(f"moecheck: {one.error}", err=True)
        elif style == "text" and one.examined is not None and one.dump is not None:
            _print(one.path, one.dump, one.examined, first=len(checked) == 1)
    if style == "json":
        click.echo(strict([_record(one) for one in checked], indent=1))
    elif len(dumps) > 1:
        click.echo(f"\n{_totals(checked)}")
    return min((one.code for one in checked), key=WORST.index)


def read_spec(text: str) -> MoESpec:
    """The MoESpec of a JSON file, or of JSON given in place; UsageError with one sentence."""
    where = "--spec"
    if not text.lstrip().startswith("{"):
        where = f"--spec {text}"
        try:
            text = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"Cannot read {where}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{where} is not UTF-8 text: {error}.") from error
    try:
        return MoESpec.from_json(loads(text))
    except ValueError as error:
        raise UsageError(f"{where} is not complete JSON: {error}.") from error
    except MoecheckError as error:
        raise UsageError(f"{where} does not fit: {error}") from error


def _checked(dumps: tuple[str, ...], op: str | None, spec: MoESpec | None, limits: Limits) -> Iterator[Checked]:
    """Each dump judged on its own: whatever is wrong with one, the others get their verdicts."""
    for path in dumps:
        try:
            dump = read_dump(Path(path), op=op, spec=spec)
            examined = examine(
                dump.given, dump.outputs, limits=limits, numerics=dump.numerics, identified=True, tie=dump.tie
            )
            yield Checked(path=path, code=_code(examined.verdict), dump=dump, examined=examined)
        except HarnessError as error:
            yield Checked(path=path, code=3, error=f"{path}: moecheck itself is broken: {error}")
        except MoecheckError as error:
            yield Checked(path=path, code=2, error=str(error))
        except Exception:  # a fault of ours on one dump must not cost the verdicts on the others
            traceback.print_exc()
            yield Checked(path=path, code=3, error=f"{path}: moecheck itself broke; please report the lines above.")


def _code(verdict: Verdict) -> int:
    if verdict in FAILURES:
        return 1
    return 0 if verdict is Verdict.PASS else 4


def _print(path: str, dump: Dump, examined: Examined, *, first: bool) -> None:
    if not first:
        click.echo()
    view = examined_view(examined, path, width=width(), kernel=dump.kernel, note=dump.note)
    click.echo(render(view, width=width(), color=color()), nl=False)
    if dump.unused:
        click.echo(f"  not used: {', '.join(dump.unused)}")


def _totals(checked: list[Checked]) -> str:
    """`3 dumps: 1 pass, 1 fail, 1 not judged`."""
    words = Counter("not judged" if one.examined is None else one.examined.verdict.value for one in checked)
    parts = ", ".join(f"{number} {word.replace('_', ' ')}" for word, number in words.items())
    return f"{count(len(checked), 'dump')}: {parts}"


def _record(one: Checked) -> dict[str, Any]:
    if one.dump is None or one.examined is None:
        return {"dump": one.path, "error": one.error, "exit_code": one.code}
    examined = one.examined
    return {
        "dump": one.path,
        "exit_code": one.code,
        "kernel": one.dump.kernel,
        "note": one.dump.note,
        "op": examined.given.case.op,
        "spec": examined.given.case.spec.to_json(),
        "verdict": examined.verdict,
        "check": examined.decisive.check,
        "message": examined.decisive.message,
        "where": examined.decisive.where,
        "numbers": examined.numbers,
        "tol": examined.limits.tol,
        "contract": examined.contract,
        "limit": examined.limit,
        "diagnosis": examined.diagnosis,
        "unused": one.dump.unused,
    }
