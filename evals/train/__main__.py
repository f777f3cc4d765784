"""`python -m moecheck.evals.train NAME --out DIR`: trains an embedded model on one GPU in minutes."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import click
import torch

from moecheck.errors import UsageError
from moecheck.evals.problems.test_set import chosen_problems
from moecheck.evals.tiny.architectures import ARCHITECTURES

from .card import write_card
from .checkpoint import write_sums
from .evaluate import accuracy, shipped_model
from .loop import Settings, train
from .recorded import record
from .rows import Shape


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the model.")
@click.option("--minutes", default=7.0, show_default=True, help="Of training; writing the model takes half a minute.")
@click.option("--steps", type=int, help="At most so many steps.")
@click.option("--seed", default=0, show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "tf32", "fp32"]), default="bf16", show_default=True)
@click.option("--workers", type=int, help="Processes that generate problems; by default two fewer than cores.")
@click.option("--batch-tokens", default=Shape().tokens, show_default=True, help="Tokens of a batch.")
@click.option("--compile", "compiled", is_flag=True, help="With torch.compile: a minute to begin with, then faster.")
@click.option("--device", help="By default the GPU, or the CPU without one, which takes days.")
def main(
    name: str,
    out: Path,
    minutes: float,
    steps: int | None,
    seed: int,
    precision: str,
    workers: int | None,
    batch_tokens: int,
    compiled: bool,
    device: str | None,
) -> None:
    """Train the embedded model NAME and write it in Hugging Face layout."""
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if minutes <= 0:
        raise click.UsageError(f"--minutes {minutes:g} must be positive.")
    config = ARCHITECTURES[name]
    settings = Settings(
        minutes=minutes,
        steps=steps,
        seed=seed,
        precision=precision,  # type: ignore[arg-type]  # the choices are its values
        workers=max(0, (os.cpu_count() or 1) - 2) if workers is None else workers,
        shape=Shape(tokens=batch_tokens),
        compiled=compiled,
    )
    try:
        result = train(config, settings, out, device=where, say=_say)
        result.tested = accuracy(shipped_model(out, where), chosen_problems())
        _say(f"test set, by operations: {result.tested}")
        machine = torch.cuda.get_device_name() if where.startswith("cuda") else platform.processor() or "CPU"
        write_card(out, name, config, settings, result, f"{machine}, torch {torch.__version__}")
        record(out)
        write_sums(out)
    except UsageError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    _say(
        f"{out}: accuracy {result.mean_accuracy:.3f} after {result.tokens / 1e6:.0f} M tokens in {result.seconds:.0f} s"
    )


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()  # a log must show the last line before a time limit


if __name__ == "__main__":
    main()
