"""`moecheck e2e`: a model on gsm8k, twice, without and with the kernel under test."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from moecheck.cli.options import positive
from moecheck.errors import UsageError

PRECISIONS = ("fp32", "bf16", "fp16", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What decides about a run's answers; kept in environment.json so that `--resume` can go on."""

    task: str
    model: str | None
    kernel: str | None
    op: str | None
    dtype: str
    mutant: str | None
    self_test: bool
    baseline: str | None
    candidate: str | None
    served_model: str | None
    baseline_log_has: str | None
    candidate_log_has: str | None
    concurrency: int
    start_timeout: float
    limit: int | None
    batch_size: int | None
    few_shot: int | None
    shots: str | None
    data: str | None
    max_new_tokens: int | None
    harness: str | None
    margin: float
    seed: int
    early_stop: bool


@click.command()
@click.option("--task", default="gsm8k", show_default=True, help="Only gsm8k.")
@click.option("--model", metavar="M", help="An embedded model's name, hf:ID, or a folder.  [the first embedded one]")
@click.option("--kernel", metavar="SPEC", help="In the candidate: built-in name, file.py:function or module:function.")
@click.option("--op", metavar="OP", help="For an undeclared function: what it computes.")
@click.option("--dtype", default="bf16", show_default=True, help=f"The candidate computes in: {', '.join(PRECISIONS)}.")
@click.option("--mutant", metavar="NAME", help="Put this known bug into the candidate (moecheck e2e --mutant help).")
@click.option("--self-test", is_flag=True, help="Put each known bug in and show which signal catches it.")
@click.option(
    "--baseline",
    "--baseline-url",
    "--baseline-cmd",
    "baseline",
    metavar="URL|CMD",
    help="A server, or a command that starts one; {port} is a free port.",
)
@click.option(
    "--candidate",
    "--candidate-url",
    "--candidate-cmd",
    "candidate",
    metavar="URL|CMD",
    help="The same with the kernel under test.",
)
@click.option("--served-model", metavar="ID", help="Model name in requests.  [what the server lists first]")
@click.option("--baseline-log-has", metavar="TEXT", help="Words in the baseline's log without which it did not run.")
@click.option("--candidate-log-has", metavar="TEXT", help="Words in the candidate's log that show its kernel ran.")
@click.option("--concurrency", type=click.IntRange(1), default=16, show_default=True, help="Requests at a time.")
@click.option("--start-timeout", type=float, default=600.0, show_default=True, callback=positive, help="Of a command.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N questions.")
@click.option(
    "--batch-size", type=click.IntRange(1), help="Prompts in a batch, the same ones in both arms.  [65; 257 on a GPU]"
)
@click.option("--few-shot", type=click.IntRange(0), help="Examples in a prompt.  [0 embedded; 5 where there are any]")
@click.option("--shots", type=click.Path(), metavar="FILE", help="JSON lines of examples.  [train.jsonl by --data]")
@click.option(
    "--data", type=click.Path(), metavar="FILE", help="JSON lines of questions.  [the model's own, or the hub]"
)
@click.option("--max-new-tokens", type=click.IntRange(1), help="Of one answer.  [256; 320 of generated questions]")
@click.option("--harness", metavar="H", help="own or lm-eval.  [own for embedded models, else lm-eval]")
@click.option("--margin", type=float, default=0.02, show_default=True, callback=positive, help="Accepted drop.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice and order of questions.")
@click.option("--early-stop", is_flag=True, help="Stop asking when the evidence decides.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports"), show_default=True, help="Parent folder."
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Go on with a run that was cut off.")
@click.pass_context
def e2e(context: click.Context, /, out: Path, resume: Path | None, **values: Any) -> int:
    """Run a model on gsm8k without and with a kernel, and say whether it still computes the same.

    Five signals, most sensitive first: the weight of each component of a layer, the divergence of next-token
    distributions, the router's choice, identical texts, accuracy. Offline with an embedded model by default.
    """
    # What this needs (scipy, torch) is imported by this command alone.
    try:
        from moecheck.cli.e2e_run import execute
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("moecheck"):
            raise
        raise UsageError(f"moecheck e2e needs {error.name}: pip install 'moecheck[e2e]'.") from error
    if resume is not None:
        _check_resume_alone(context)
        return execute(None, resume=resume, out=out)
    options = Options(**values)
    _check(options)
    return execute(options, resume=None, out=out)


def plain(options: Options) -> dict[str, Any]:
    """The options as JSON has them."""
    return asdict(options)


def _check(options: Options) -> None:
    """Raise UsageError for options that contradict each other."""
    if options.task != "gsm8k":
        raise UsageError(f"Unknown task {options.task!r}: only gsm8k.")
    if options.dtype not in PRECISIONS:
        raise UsageError(f"--dtype {options.dtype} must be one of {', '.join(PRECISIONS)}.")
    if options.harness not in (None, "own", "lm-eval"):
        raise UsageError(f"--harness {options.harness} must be own or lm-eval.")
    if not 0 < options.margin < 1:
        raise UsageError(f"--margin {options.margin:g} must lie between 0 and 1.")
    servers = [name for name in ("baseline", "candidate") if getattr(options, name)]
    if len(servers) == 1:
        missing = "candidate" if servers == ["baseline"] else "baseline"
        raise UsageError(f"--{servers[0]} needs --{missing}: a server pair is compared.")
    if servers:
        for name in ("kernel", "mutant", "model", "op"):
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name} is of models in this process; leave it out with --baseline and --candidate."
                )
        if options.self_test:
            raise UsageError("--self-test is of models in this process; leave out --baseline and --candidate.")
    for name in ("served_model", "baseline_log_has", "candidate_log_has"):
        if not servers and getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is of servers: give --baseline and --candidate.")
    if options.self_test and (options.kernel or options.mutant):
        raise UsageError("--self-test puts each bug in by itself; leave out --kernel and --mutant.")
    if options.kernel and options.mutant:
        raise UsageError("A mutant is a change of the reference path: give --mutant or --kernel, not both.")
    if options.early_stop and options.harness == "lm-eval":
        raise UsageError("--early-stop asks question by question, and lm-eval asks all; use --harness own.")


def _check_resume_alone(context: click.Context) -> None:
    """The options of a resumed run are those it began with."""
    for name in context.params:
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name != "resume":
            raise UsageError(f"--resume goes on with the options of that run; leave out --{name.replace('_', '-')}.")
