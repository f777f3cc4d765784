"""Plants each known bug in the text of the CUDA C++ kernels, builds and runs them on the GPU, and tells which are seen.

Usage: python tools/cuda_mutants.py [--jobs N] [NAME]...
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import sys
import time

from moecheck.scoring.cuda_sources import CUDA_MUTANTS
from moecheck.scoring.source_kernels import kernel_trials


def main() -> int:
    """Print a line for each mutant; 1 where one survives or a kernel as it is was accused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    start = time.perf_counter()
    wanted = tuple(one for one in CUDA_MUTANTS if not options.names or one.name in options.names)
    found = kernel_trials(wanted, seeds=1, jobs=options.jobs)
    for score in found.scores:
        state = "killed" if score.killed else "SURVIVED"
        print(f"{state:9} {score.id:42} {', '.join(score.checks):28} {score.seen_on}")
    for name, why in (*found.skipped.items(), *found.alarms.items()):
        print(f"NOT RUN or ACCUSED {name}: {why}")
    killed = sum(score.killed for score in found.scores)
    print(f"{killed} of {len(wanted)} killed, {len(found.alarms)} alarms, {time.perf_counter() - start:.0f} s")
    return int(killed < len(wanted) or bool(found.alarms))


if __name__ == "__main__":
    sys.exit(main())
