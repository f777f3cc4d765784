"""`python -m moecheck.evals.train NAME --out DIR`: trains an embedded model on one GPU in minutes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import torch

from moecheck.evals.tiny.architectures import ARCHITECTURES

from .finish import run
from .loop import Settings, train
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
    result = train(config, settings, out, device=where, say=_say)
    _say(f"{result.tokens / 1e6:.0f} M tokens in {result.seconds:.0f} s; validation {result.mean_accuracy:.3f}")
    run(out, name, where, _say)


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()  # a log must show the last line before a time limit


if __name__ == "__main__":
    main()
