"""Runs `moecheck mutants` in its default profile, and writes reports/mutants and docs/mutants.md with what it found.

python tools/publish_mutants.py [--jobs N]        # minutes on two quiet cores; exit code 1 below the bar
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from moecheck.cli.options import color, width
from moecheck.report.environment import git_commit
from moecheck.report.mutants import publish
from moecheck.report.mutants_view import score_view
from moecheck.report.terminal import render
from moecheck.scoring.run import PROFILES, Plan, run_score

PROFILE = "default"
TOOLS = Path(__file__).parent


@click.command()
@click.option("--jobs", type=click.IntRange(1), default=min(os.cpu_count() or 1, 8), show_default=True)
def main(jobs: int) -> None:
    """Run the score, and publish it."""
    plan = Plan(profile=PROFILE, jobs=jobs, **PROFILES[PROFILE])
    score = run_score(plan, command="moecheck mutants", git=git_commit())
    publish(TOOLS.parent / "reports" / "mutants", score)
    subprocess.run([sys.executable, TOOLS / "write_mutants_document.py"], check=True)
    click.echo(render(score_view(score, width=width()), width=width(), color=color()), nl=False)
    sys.exit(0 if score.passed else 1)


if __name__ == "__main__":
    main()
