"""`python -m moecheck.evals.problems`: writes the shipped files into this folder again."""

import click

from .test_set import HERE, files


@click.command()
def main() -> None:
    """Write test.jsonl, few_shot.jsonl and SHA256SUMS."""
    for name, content in files().items():
        (HERE / name).write_bytes(content)
        click.echo(f"{HERE / name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
