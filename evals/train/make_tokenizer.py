"""Makes the tokenizer of the embedded models: 512 tokens, digits one by one, learnt from generated problems.

`python -m moecheck.evals.train.make_tokenizer` writes moecheck/evals/tiny/tokenizer.json again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import click
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moecheck.evals.problems import is_held_out, problems
from moecheck.evals.tiny.text import TOKENIZER, as_document

VOCABULARY = 512
SEED = 7
LEARNT_FROM = 4000  # problems
UNKNOWN, END = "<unk>", "<|endoftext|>"


def make_tokenizer() -> Tokenizer:
    """Byte-pair encoding over printable ASCII: text is kept as it is, other characters become UNKNOWN."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # ByteLevel writes a space as Ġ and a line feed as Ċ.
    alphabet = [*(chr(code) for code in range(33, 127)), "Ġ", "Ċ"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[UNKNOWN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_documents(), trainer)
    return tokenizer


def _documents() -> Iterator[str]:
    trained = (problem for problem in problems(SEED) if not is_held_out(problem.content))
    return (as_document(problem.question, problem.answer) for problem in islice(trained, LEARNT_FROM))


@click.command()
def main() -> None:
    """Write the tokenizer into the package."""
    make_tokenizer().save(str(TOKENIZER))
    click.echo(f"{TOKENIZER}: {TOKENIZER.stat().st_size} bytes")


if __name__ == "__main__":
    main()
