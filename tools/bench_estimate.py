"""Measures what value and sigma together cost beside the plain reference, on the same cases, in one run.

    python tools/bench_estimate.py

plain: the reference's value. estimate: value and sigma from one call. deviation: the rounded value and the standard
deviation of an honest kernel's difference from it, which a known contract needs besides.
CPU seconds on one thread, the least of three, summed over the cases of the default profile.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

from threadpoolctl import threadpool_limits

from moecheck.checks.judge import VALUE_OPS
from moecheck.curated import cases_for
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import call_reference, reference_modules

REPEATS = 3
STORED = Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT)  # what torch/index_add declares


def main() -> None:
    """Print a row per op, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="default")
    a = parser.parse_args()
    print(f"$ python {' '.join(sys.argv)}")
    print(f"{'op':14} {'cases':>5} {'plain':>8} {'estimate':>9} {'ratio':>6} {'deviation':>10} {'ratio':>6}")
    total = [0.0, 0.0, 0.0]
    with threadpool_limits(1, "blas"):
        for op in sorted(VALUE_OPS - {"topk_routing"}):
            module, cases = reference_modules()[op], cases_for(op, profile=a.profile, seed=0)
            sums = [0.0, 0.0, 0.0]
            for case in cases:
                inputs, numerics = case.inputs(), STORED
                call = partial(call_reference, case=case, inputs=inputs)
                estimate = partial(call, module.estimate, numerics=numerics, dtype=case.dtype)
                sums[0] += _seconds(partial(call, getattr(module, op)))
                sums[1] += _seconds(partial(estimate, rows=False))
                sums[2] += _seconds(partial(estimate, flips=True))
            _print(op, len(cases), sums)
            total = [t + s for t, s in zip(total, sums, strict=True)]
    _print("all", 0, total)


def _print(name: str, count: int, sums: list[float]) -> None:
    plain, both, flips = sums
    print(
        f"{name:14} {count:5} {plain:7.2f}s {both:8.2f}s {both / plain:6.2f} {flips:9.2f}s {flips / plain:6.2f}",
        flush=True,
    )


def _seconds(call: Callable[[], object]) -> float:
    """The least CPU time of some calls."""
    least = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        least = min(least, time.process_time() - start)
    return least


if __name__ == "__main__":
    main()
