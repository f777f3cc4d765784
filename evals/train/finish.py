"""What a trained model is shipped with: accuracy on the test set, model card, recorded outputs, sums.

`python -m moecheck.evals.train.finish NAME --out DIR` does it again, such as after a change of the test set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
import torch

from moecheck.errors import UsageError
from moecheck.evals.problems.test_set import chosen_problems
from moecheck.evals.tiny.architectures import ARCHITECTURES

from .card import write_card
from .checkpoint import write_sums
from .evaluate import accuracy, shipped_model
from .facts import read_facts
from .recorded import record


def finish(folder: Path, name: str, *, device: str, say: Callable[[str], None]) -> None:
    """Evaluate the folder's weights on the test set and write all that goes with them."""
    facts = read_facts(folder)
    tested = accuracy(shipped_model(folder, device), chosen_problems())
    share = write_card(folder, name, facts, tested)
    record(folder)
    write_sums(folder)
    words = ", ".join(f"{operations}: {right:.3f}" for operations, right in tested.items())
    say(f"{folder}: {share:.1%} of the test set (by operations {words})")


def run(folder: Path, name: str, device: str | None, say: Callable[[str], None]) -> None:
    """`finish` for a command: bad input ends with one sentence and exit code 2."""
    try:
        finish(folder, name, device=device or ("cuda" if torch.cuda.is_available() else "cpu"), say=say)
    except UsageError as error:
        click.echo(str(error), err=True)
        sys.exit(2)


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the model.")
@click.option("--device", help="By default the GPU, or the CPU without one.")
def main(name: str, out: Path, device: str | None) -> None:
    """Write accuracy, card, recorded outputs and sums of the trained model NAME again."""
    run(out, name, device, click.echo)


if __name__ == "__main__":
    main()
