"""Measures what the check of routing weights sees, and that honest routers pass it, over many seeds.

    python tools/measure_routing.py --seeds 20 --examples 4

First the routing weights of torch/topk_routing times a factor, stored in the case's format or kept in fp32, on the
default profile's plain routing cases; a seed counts as caught when any case fails. Then all built-in routers, as they
are, on all cases: what fails is a false alarm.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Judgement
from moecheck.checks.judge import Limits, judge
from moecheck.checks.sample import FEWEST
from moecheck.curated import cases_for, few_shapes
from moecheck.formats import AnyArray, round_to
from moecheck.kernels.torch.routing import topk_routing
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import Oracle
from moecheck.registry import Found, discover
from moecheck.runner.arrays import to_native, to_numpy
from moecheck.runner.plan import lacking
from moecheck.runner.pool import KernelPool, default_memory
from moecheck.runner.relate import COMPILED
from moecheck.runner.worker import Outcome, run_case

OP = "topk_routing"
FACTORS = {
    "fp32": (1.000001, 1.000002, 1.000005, 1.00002),
    "bf16": (1.00005, 1.0001, 1.0002, 1.0005, 1.002),
    "fp16": (1.00001, 1.00002, 1.00005, 1.0002),
}
LOW = Numerics(topk_weights=INPUT, out="fp32")
TIMEOUT = 300.0


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--examples", type=int, default=4)
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(f"$ python {' '.join(sys.argv)}")
    print(f"{'weights':8} {'factor':>9} {'seeds':>6} {'cases':>6}   share caught, of {a.seeds} seeds")
    for stored_as, factors in FACTORS.items():
        for factor in (1.0, *factors):
            caught = [_caught(stored_as, factor, seed, a.examples) for seed in range(a.seeds)]
            seeds, cases = np.mean([any(one) for one in caught]), np.mean([each for one in caught for each in one])
            print(f"{stored_as:8} {factor:9.6f} {seeds:6.2f} {cases:6.2f}", flush=True)
    print(f"\n{'router':34} {'cases':>6}  {'false alarms':>12}  worst share of a limit: slope, mean, rms, bits")
    for found in discover([], op=OP, backend=None, memory=default_memory(1), jobs=1).found:
        if found.declaration.op == OP:
            _honest(found, a.seeds, a.examples)


def _plain(stored_as: str, seed: int, examples: int) -> list[Case]:
    """Cases of ordinary logits in the weights' format; all formats for fp32 weights."""
    cases = cases_for(OP, profile="default", seed=seed, examples=examples)
    cases = [case for case in cases if case.load == "random" and case.num_tokens * case.spec.routing.top_k >= FEWEST]
    return [case for case in cases if stored_as in ("fp32", case.dtype)]


def _caught(stored_as: str, factor: float, seed: int, examples: int) -> list[bool]:
    """Of each plain case, whether it fails."""
    found = []
    for case in _plain(stored_as, seed, examples):
        oracle, routing = Oracle(), case.spec.routing
        inputs = {
            name: to_native(value, "torch")
            for name, value in oracle.inputs(case).items()
            if isinstance(value, np.ndarray)
        }
        weights, ids = (to_numpy(output) for output in topk_routing(**inputs, spec=routing))
        weights = weights.astype(np.float64)
        weights[:, : routing.top_k] *= factor
        if stored_as != "fp32":
            weights[:, : routing.top_k] = round_to(weights[:, : routing.top_k], stored_as)
        found.append(bool(_failing(case, (weights.astype(np.float32), ids), LOW if stored_as != "fp32" else None)))
    return found


def _failing(case: Case, outputs: tuple[AnyArray, ...], numerics: Numerics | None) -> list[Judgement]:
    judged = judge(case, outputs, Oracle(), Limits(), numerics)
    return [judgement for judgement in judged.judgements if judgement.verdict in FAILURES]


def _honest(found: Found, seeds: int, examples: int) -> None:
    """Print a row for one router, and each of its false alarms."""
    names = ("slope_error", "mean_z", "rms_z", "disagreement")
    declaration, shares, alarms = found.declaration, dict.fromkeys(names, 0.0), list[str]()
    start, count = time.monotonic(), 0
    with threadpool_limits(1, "blas"), KernelPool(memory=default_memory(1), threads=1) as pool:
        for case in _cases(found, seeds, examples):
            outcome = pool.wait(pool.submit(run_case, found.target, case, timeout=TIMEOUT))
            assert isinstance(outcome, Outcome)
            if outcome.problem is not None:
                continue
            count += 1
            for judgement in judge(case, outcome.outputs, Oracle(), Limits(), declaration.numerics).judgements:
                if judgement.verdict in FAILURES:
                    alarms.append(f"  {case.id} seed {case.seed}: {judgement.message}")
                if judgement.check == "statistics":
                    for name in names:
                        share = abs(judgement.numbers.get(name, 0.0)) / judgement.numbers.get(f"limit_{name}", 1.0)
                        shares[name] = max(shares[name], share)
    worst = ", ".join(f"{shares[name]:.2f}" for name in names)
    seconds = time.monotonic() - start
    print(f"{declaration.name:34} {count:6}  {len(alarms):12}  {worst}  ({seconds:.0f} s)", flush=True)
    print("\n".join(alarms[:20]), end="\n" if alarms else "")


def _cases(found: Found, seeds: int, examples: int) -> list[Case]:
    """The default profile's cases of all seeds that the kernel takes; few shapes for a backend that compiles each."""
    declaration, cases = found.declaration, list[Case]()
    for seed in range(seeds):
        drawn = cases_for(
            OP,
            profile="default",
            seed=seed,
            small=found.device == "interpreter",
            examples=examples,
            specs=declaration.specs,
            dtypes=declaration.dtypes,
        )
        drawn = [case for case in drawn if lacking(declaration, case) is None]
        cases += few_shapes(drawn, 6)[0] if declaration.backend in COMPILED else drawn
    return cases


if __name__ == "__main__":
    main()
