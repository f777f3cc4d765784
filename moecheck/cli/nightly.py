"""`moecheck nightly`: several commands in a row, compared with the nights before."""

from __future__ import annotations

from pathlib import Path

import click

from moecheck.cli.bench import bench
from moecheck.cli.e2e import e2e
from moecheck.cli.kernels import kernels
from moecheck.cli.mutants import mutants
from moecheck.cli.progress import waiting
from moecheck.errors import UsageError
from moecheck.nightly.config import read_config
from moecheck.nightly.documents import lines, markdown
from moecheck.nightly.folder import NightFolder
from moecheck.nightly.night import run_night

COMMANDS = {"kernels": kernels, "mutants": mutants, "e2e": e2e, "bench": bench}


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Go on with a night that was cut off.")
def nightly(config: Path | None, resume: Path | None) -> int:
    """Run what CONFIG (nightly.toml) asks for, and compare with the history.

    Exit codes: 0 nothing new, 1 a regression, a finding that is not listed as known, a drift or an unexpected pass,
    2 bad configuration, 3 a part broke, 4 something is undecided or no longer tested. docs/nightly.md has the format.
    """
    if (config is None) == (resume is None):
        raise UsageError("Give a nightly.toml to begin a night, or --resume DIR to go on with one.")
    if resume is not None:
        folder = NightFolder.open(resume)
        plan = read_config(folder.config, COMMANDS, base=folder.base)
    else:
        assert config is not None
        plan = read_config(config, COMMANDS)
        base = config.parent.absolute()
        folder = NightFolder.create(plan.out, text=plan.text, seed=plan.seed, base=base)
    with folder.locked(), waiting("") as say:
        result = run_night(plan, folder, say)
        notes = folder.finish(result.to_json(), markdown(result))
    for line in lines(result):
        click.echo(line)
    click.echo(f"Report: {folder.path}")
    for note in notes:
        click.echo(f"moecheck: {note}", err=True)
    return result.exit_code
