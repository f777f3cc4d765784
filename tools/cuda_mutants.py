"""Plants each known bug in the text of the CUDA C++ kernels, builds and runs them, and tells which are seen.

Needs a GPU; with --emulated, a host's C++ compiler and the CUDA toolkit's headers instead: blocks run one after the
other, a block's threads as fibers (tests/kernels/emulation). With --triton, the bugs of the Triton kernels.
Usage: python tools/cuda_mutants.py [--jobs N] [--emulated | --triton] [NAME]...
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from moecheck.runner.pool import start_context
from moecheck.scoring.cuda_sources import CUDA_MUTANTS
from moecheck.scoring.source_kernels import kernel_trials, plant, tried
from moecheck.scoring.sources import SOURCE_MUTANTS, SourceMutant

EMULATED = """\
import sys, tempfile
from pathlib import Path

sys.path.append({checkout!r})
from tests.kernels.cuda_emulation import build, emulate

import {package}.{module} as module

emulate({package!r}, build(Path(module.__file__).parent / "csrc", Path(tempfile.mkdtemp(dir={folder!r}))))
kernel = module.{function}
"""


def on_a_gpu(wanted: Sequence[SourceMutant], jobs: int) -> int:
    """Print a line for each mutant and each kernel as it is; how many of the mutants were killed, less the alarms."""
    found = kernel_trials(tuple(wanted), seeds=1, jobs=jobs)
    for score in found.scores:
        print(_line(score.id, score.checks, score.seen_on), flush=True)
    for name, why in (*found.skipped.items(), *found.alarms.items()):
        print(f"NOT RUN or ACCUSED {name}: {why}")
    return sum(score.killed for score in found.scores) - len(found.alarms)


def emulated(wanted: Sequence[SourceMutant], jobs: int) -> int:
    """The same without a GPU."""
    asis = {one.kernel: replace(one, name=one.kernel, rewrites=()) for one in wanted}
    start_context()
    killed = 0
    with (
        tempfile.TemporaryDirectory(prefix="moecheck-mutants-") as name,
        ThreadPoolExecutor(max_workers=jobs) as threads,
    ):
        folder = Path(name)

        def trial(one: SourceMutant) -> tuple[SourceMutant, frozenset[str], str, str]:
            place = plant(one, folder)
            shim = Path(place.rpartition(":")[0])
            module, _, function = one.kernel.partition(":")
            text = EMULATED.format(
                checkout=str(Path(__file__).resolve().parents[1]), package=shim.parent.name, module=module,
                function=function, folder=name,
            )  # fmt: skip
            shim.write_text(text, encoding="utf-8")
            (result,) = tried(one, place, 1)
            return one, result.checks, result.seen_on, result.skipped or result.message

        for one, checks, seen_on, message in threads.map(trial, [*asis.values(), *wanted]):
            if one.rewrites:
                print(_line(one.name, checks, seen_on), flush=True)
                killed += bool(checks)
            else:
                print(f"as it is {'FAILS: ' + message if checks or message else 'passes'} {one.name}", flush=True)
                killed -= bool(checks or message)
    return killed


def _line(name: str, checks: Sequence[str] | frozenset[str], seen_on: str) -> str:
    seen = sorted({check.partition(":")[0] for check in checks})
    return f"{'killed' if seen else 'SURVIVED':9} {name:40} {', '.join(seen):28} {seen_on}"


def main() -> int:
    """Print the lines; 1 where a mutant survives or a kernel as it is was accused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--emulated", action="store_true")
    where.add_argument("--triton", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    start = time.perf_counter()
    known = [one for one in SOURCE_MUTANTS if one.file.startswith("triton/")] if options.triton else CUDA_MUTANTS
    wanted = [one for one in known if not options.names or one.name in options.names]
    killed = (emulated if options.emulated else on_a_gpu)(wanted, options.jobs)
    print(f"{killed} of {len(wanted)} killed, less kernels that were accused as they are; "
          f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    return int(killed < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
