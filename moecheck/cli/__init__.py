"""The command line: the only place that prints."""

from __future__ import annotations

import sys
import traceback

import click

from moecheck.cli.audit import audit_command
from moecheck.cli.bench import bench
from moecheck.cli.check import check
from moecheck.cli.doctor import doctor
from moecheck.cli.e2e import e2e
from moecheck.cli.history import history
from moecheck.cli.kernels import kernels
from moecheck.cli.listing import list_all
from moecheck.cli.mutants import mutants
from moecheck.cli.new_kernel import new_kernel
from moecheck.cli.nightly import nightly
from moecheck.cli.replay import replay
from moecheck.cli.report import report
from moecheck.cli.tune import tune_command
from moecheck.errors import HarnessError, MoecheckError, near

PASSED, FAILED, USAGE, BROKEN, UNDECIDED = range(5)


class _Commands(click.Group):
    """A group that offers the near name for an unknown command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            hint = near(name, self.list_commands(ctx)) or f" Known: {', '.join(self.list_commands(ctx))}."
            raise click.UsageError(f"Unknown command {name!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="moecheck")
def cli() -> None:
    """Is this Mixture-of-Experts kernel numerically correct?

    Exit codes: 0 all passed, 1 a check failed, 2 bad usage, 3 moecheck itself broke, 4 nothing failed but something is
    undecided or nothing was really checked.
    """


for command in (
    kernels,
    bench,
    tune_command,
    e2e,
    check,
    mutants,
    nightly,
    history,
    audit_command,
    replay,
    report,
    list_all,
    doctor,
    new_kernel,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; bad input gets one sentence and no traceback."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """The exit code of one command line."""
    try:
        code = cli.main(arguments, prog_name="moecheck", standalone_mode=False)
        return code if isinstance(code, int) else PASSED
    except click.exceptions.Abort:
        return _fail(_interrupted(arguments), 130)
    except click.UsageError as error:
        return _fail(error.format_message(), USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), USAGE)
    except HarnessError as error:
        return _fail(f"moecheck itself is broken: {error}", BROKEN)
    except MoecheckError as error:
        return _fail(str(error), USAGE)
    except KeyboardInterrupt:
        return _fail(_interrupted(arguments), 130)
    except BrokenPipeError:  # `moecheck list | head`
        sys.stderr.close()
        return PASSED
    except Exception:
        traceback.print_exc()
        return _fail("moecheck itself broke; please report the lines above.", BROKEN)


def _interrupted(arguments: list[str] | None) -> str:
    """What to do after Ctrl-C: nights, runs of kernels and end-to-end runs keep what they found."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] in (["kernels"], ["e2e"], ["nightly"]):
        return "Interrupted; what was found is kept: go on with --resume DIR."
    return "Interrupted; nothing was kept."


def _fail(message: str, code: int) -> int:
    click.echo(f"moecheck: {message}", err=True)
    return code
