"""Measures what the checks see: a factor on all routing weights, and one wrong element, over many seeds.

    python tools/measure_detection.py --seeds 20

The kernel is torch/index_add with its routing weights multiplied by the factor, judged on the plain cases of the
default profile with each seed; a seed counts as caught when any case fails. "declared": under the kernel's own
contract. "found": as a kernel that declares nothing, under what moecheck finds out by a few calls. "floor": as a kernel
whose rounding points nobody knows.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from moecheck.bounds import z_limit
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES
from moecheck.checks.judge import Limits, judge
from moecheck.curated import cases_for
from moecheck.formats import AnyArray, store, to_float64
from moecheck.identify import identification_cases
from moecheck.kernel import Declaration
from moecheck.kernels.torch.index_add import fused_experts
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.runner.arrays import to_native, to_numpy
from moecheck.runner.contract import contract_from

FACTORS = {"bf16": (1.00005, 1.0001, 1.0002, 1.0005, 1.002), "fp32": (1.000001, 1.000005, 1.00002, 1.0001)}
SIGMAS = (9.0, 11.0, 13.0, 15.0)
DECLARATION: Declaration = fused_experts.__moecheck__  # type: ignore[attr-defined]  # set by the decorator


def main() -> None:
    """Print the shares of seeds that are caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    a = parser.parse_args()
    print(f"$ python tools/measure_detection.py --seeds {a.seeds}")
    with ProcessPoolExecutor(a.jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:

        def share(function: Callable[..., bool], *arguments: object) -> float:
            return float(np.mean([*pool.map(partial(function, *arguments), range(a.seeds))]))

        print(f"share of {a.seeds} seeds in which a case fails")
        print(f"{'format':6} {'factor':>9} {'declared':>9} {'found':>9} {'floor':>9}")
        for dtype, factors in FACTORS.items():
            for factor in (1.0, *factors):
                found = _found(factor)
                shares = [
                    share(_caught, dtype, factor, numerics, declared)
                    for numerics, declared in ((DECLARATION.numerics, True), (found, False), (None, False))
                ]
                print(f"{dtype:6} {factor:9.6f} " + " ".join(f"{value:9.2f}" for value in shares), flush=True)
        print(f"\none element of 65,536 moved by so many sigma (limit {z_limit(1 << 16):.1f}):")
        for size in SIGMAS:
            print(f"{size:6.0f} sigma {share(_element_caught, size):9.2f}", flush=True)


def _one_thread() -> None:
    """Many processes with many threads each would only wait for one another."""
    threadpool_limits(1, "blas")
    torch.set_num_threads(1)


def _found(factor: float) -> Numerics | None:
    """The contract that moecheck finds for a kernel with the factor that declares none."""
    oracle, silent = Oracle(), replace(DECLARATION, numerics=None)
    seen = [(case, (_run(case, oracle, factor),)) for case in identification_cases(silent)]
    return contract_from(oracle, silent, seen, {}).numerics


def _caught(dtype: str, factor: float, numerics: Numerics | None, declared: bool, seed: int) -> bool:
    """Whether any of the default profile's plain cases in this format fails."""
    for case in cases_for("fused_experts", profile="default", seed=seed, examples=4):
        plain = case.spec.experts.activation == "silu" and case.stratum == "random" and case.load == "random"
        if case.dtype == dtype and plain and case.num_tokens >= 64 and case.num_local_experts is None:
            oracle = Oracle()
            out = _run(case, oracle, factor)
            judged = judge(case, (out,), oracle, Limits(), numerics, declared=declared)
            if any(judgement.verdict in FAILURES for judgement in judged.judgements):
                return True
    return False


def _element_caught(size: float, seed: int) -> bool:
    case, oracle = replace(Case(op="fused_experts"), num_tokens=256, hidden_size=256, seed=seed), Oracle()
    values = oracle.values(case, DECLARATION.numerics)
    out = to_float64(_run(case, oracle, 1.0))
    rng = np.random.default_rng(seed)
    at = int(rng.integers(256)), int(rng.integers(256))
    out[at] = values.true[at] + size * values.sigma[at]
    judged = judge(case, (store(out, case.dtype),), oracle, Limits(), DECLARATION.numerics)
    return any(judgement.verdict in FAILURES for judgement in judged.judgements)


def _run(case: Case, oracle: Oracle, factor: float) -> AnyArray:
    inputs = dict(oracle.inputs(case))
    inputs["topk_weights"] = inputs["topk_weights"] * np.float32(factor)
    native = {name: to_native(value, "torch") for name, value in inputs.items() if isinstance(value, np.ndarray)}
    out: AnyArray = to_numpy(fused_experts(**native, spec=case.spec.experts))
    return out


if __name__ == "__main__":
    main()
