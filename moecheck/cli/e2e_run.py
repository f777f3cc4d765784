"""From options to a verdict: opens the model, reads the data, runs, reports. Imports what `moecheck[e2e]` brings."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from moecheck.cli.e2e import Options, plain
from moecheck.cli.e2e_data import TaskData, task_data
from moecheck.cli.e2e_progress import PhaseProgress
from moecheck.cli.options import color, width
from moecheck.errors import UsageError, check_known
from moecheck.evals.backends.backend import Model
from moecheck.evals.backends.records import Arm, KernelFailed
from moecheck.evals.gsm8k.prompts import MAX_NEW_TOKENS
from moecheck.evals.paired.model_run import run_model
from moecheck.evals.paired.result import RunResult
from moecheck.evals.paired.self_test import self_test, self_test_view
from moecheck.evals.paired.settings import Settings
from moecheck.evals.report.documents import RunFacts
from moecheck.evals.report.folder import RunFolder
from moecheck.evals.report.terminal import run_view
from moecheck.evals.tiny.text import MOST_TOKENS
from moecheck.report.environment import git_commit
from moecheck.report.terminal import render

# Both cross the edges of tiles, by one row; a GPU takes as long for the larger one.
BATCH, GPU_BATCH = 65, 257
HELP = "help"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model, whether it is an embedded one, and what it is called in a report."""

    model: Model
    embedded: bool

    @property
    def on_gpu(self) -> bool:
        """Whether it is an embedded model on a GPU, where a batch of any size has room."""
        checkpoint = getattr(self.model, "checkpoint", None)
        return checkpoint is not None and checkpoint.weights.device.type == "cuda"


def execute(options: Options | None, *, resume: Path | None, out: Path) -> int:
    """Run, report, and return the exit code; options None: those of the folder `resume`."""
    folder = None if resume is None else RunFolder.open(resume)
    if folder is not None:
        options = _saved(folder)
    assert options is not None
    started, start = datetime.now(UTC), time.monotonic()
    watcher = PhaseProgress()
    if options.baseline is not None:
        from moecheck.cli.e2e_servers import run_servers

        folder = folder or RunFolder.create(out, plain(options))
        result = run_servers(options, folder, watcher)
    else:
        opened = open_model(options.model)
        if options.mutant == HELP:
            return _list_mutants(opened.model)
        data = task_data(options, embedded=opened.embedded)
        settings = _settings(options, data, opened)
        if options.kernel is None and options.mutant is None and not options.self_test:
            watcher.say("No --kernel: the candidate is the reference path with experts in " + options.dtype + ".")
        folder = folder or RunFolder.create(out, plain(options))
        if options.self_test:
            return _self_test(opened.model, settings, folder, watcher)
        arm = Arm(
            kernel=options.kernel,
            op=options.op,
            precision=options.dtype,  # type: ignore[arg-type]  # checked against the same names
            mutant=options.mutant,
        )
        try:
            result = run_model(
                opened.model,
                arm,
                settings,
                journal=folder.journal,
                watcher=watcher,
                files=data.files,
                flexible=data.real,
            )
        except KernelFailed as error:
            click.echo(f"✘ fail: {error} Answers so far are in {folder.path}.")
            return 1
    run = RunFacts(
        command=command_of(options),
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - start,
        git=git_commit(),
    )
    return finish(folder, result, run)


def finish(folder: RunFolder, result: RunResult, run: RunFacts) -> int:
    """Write and print what was found."""
    notes = folder.finish(result, run)
    shown = folder.path / "report.html"
    click.echo(render(run_view(result, report=str(shown)), width=width(), color=color()), nl=False)
    for note in notes:
        click.echo(f"moecheck: {note}", err=True)
    return result.verdict.exit_code


def open_model(name: str | None) -> Opened:
    """An embedded model by name or `embedded:FOLDER`, `hf:ID`, or a folder for transformers."""
    from moecheck.evals.backends import embedded

    if name is None or name in embedded.MODELS:
        return Opened(model=embedded.open_model(name or embedded.MODELS[0]), embedded=True)
    if name.startswith("embedded:"):
        return Opened(model=embedded.open_model(name.removeprefix("embedded:")), embedded=True)
    if name.startswith(("http://", "https://")):
        raise UsageError("A server is compared with another: give --baseline URL --candidate URL.")
    if not name.startswith("hf:") and not Path(name).is_dir():
        check_known("model", name, embedded.MODELS)
    from moecheck.evals.backends.transformers import open_model as open_transformers

    return Opened(model=open_transformers(name.removeprefix("hf:")), embedded=False)


def command_of(options: Options) -> str:
    """The command line that does the same."""
    words = ["moecheck", "e2e"]
    for name, value in plain(options).items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value not in (None, False) and value != _DEFAULTS.get(name):
            words += [flag, str(value)]
    return shlex.join(words)


_DEFAULTS: dict[str, Any] = {"dtype": "bf16", "concurrency": 16, "start_timeout": 600.0, "margin": 0.02, "seed": 0}


def _settings(options: Options, data: TaskData, opened: Opened) -> Settings:
    harness = options.harness or ("own" if opened.embedded or options.early_stop else data.harness)
    generated = opened.embedded and not data.real
    return Settings(
        questions=data.questions,
        data=data.words,
        shots=data.shots,
        batch_size=options.batch_size or (GPU_BATCH if opened.on_gpu else BATCH),
        precision=options.dtype,  # type: ignore[arg-type]  # checked against the same names
        margin=options.margin,
        seed=options.seed,
        early_stop=options.early_stop,
        harness=harness,  # type: ignore[arg-type]  # checked
        max_new_tokens=options.max_new_tokens or (MOST_TOKENS if generated else MAX_NEW_TOKENS),
    )


def _self_test(model: Model, settings: Settings, folder: RunFolder, watcher: PhaseProgress) -> int:
    rows = self_test(model, settings, journal=folder.journal, watcher=watcher)
    folder.keep_self_test(rows)
    click.echo(render(self_test_view(rows), width=width(), color=color()), nl=False)
    return 0 if all(row.as_expected for row in rows) else 1


def _list_mutants(model: Model) -> int:
    words = getattr(model, "mutant_words", None)
    for name in model.mutants():
        click.echo(f"{name}  {words(name)}" if words else name)
    return 0


def _saved(folder: RunFolder) -> Options:
    try:
        return Options(**folder.options())
    except TypeError as error:
        raise UsageError(f"{folder.path} does not tell the options of its run ({error}); start a new one.") from error
