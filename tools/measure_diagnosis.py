"""Measures how often the diagnosis names the bug of a wrong kernel, and that it names none for a right one.

python tools/measure_diagnosis.py [SEEDS] > reports/diagnosis/cpu.txt
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
from threadpoolctl import threadpool_limits
from wrong_kernel import layer, topk

from moecheck.cases import Case
from moecheck.diagnosis import Diagnosis, diagnose
from moecheck.oracle import Oracle
from moecheck.spec import MoESpec, RoutingSpec

FACTOR = RoutingSpec(top_k=4, renormalize=True, routed_scaling_factor=2.5, scaling_placement="routed_output")
BIASED = RoutingSpec(top_k=4, scoring="sigmoid", correction_bias="select", renormalize=True, routed_scaling_factor=2.5)
GROUPED = RoutingSpec(
    top_k=4,
    scoring="sigmoid",
    correction_bias="select",
    num_expert_groups=4,
    topk_groups=2,
    group_score="top2_sum",
    renormalize=True,
    routed_scaling_factor=2.5,
)
PLAIN = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True))
SHARED = MoESpec(routing=FACTOR, shared_experts="ungated")
EXPERTS = [
    ("all_zeros", "all zeros"),
    ("swap_gate_up", "gate and up exchanged"),
    ("expert_dropped", "an expert dropped"),
    ("factor", "output x 1.05"),
    ("1_token_zero", "a row lost"),
    ("nan_rows", "a row of NaN"),
    ("silu->gelu", "gelu for silu"),
]
LAYERS = [
    ("w_sh=1/r", "shared expert weighted 1/r", SHARED, 8),
    ("renorm_all", "renormalised over routed + shared", SHARED, 8),
    ("drop_r", "factor missing", SHARED, 8),
    ("r_twice", "factor applied twice", SHARED, 8),
    ("biased_scores_as_weights", "biased scores as weights", MoESpec(routing=BIASED), 16),
    ("bias_ignored", "correction bias ignored", MoESpec(routing=BIASED), 16),
    ("groups_ignored", "expert groups ignored", MoESpec(routing=GROUPED), 16),
]
DTYPES = ("bf16", "fp32", "fp16")


def cases() -> Iterator[tuple[str, str, Case]]:
    """Bug, what it is in words, and the case it is measured on."""
    for op in ("fused_experts", "moe_layer"):
        for bug, words in EXPERTS:
            yield bug, words, Case(op=op, spec=PLAIN)
    for bug, words, spec, experts in LAYERS:
        shared = 128 if spec.shared_experts != "none" else 0
        yield bug, words, Case(op="moe_layer", spec=spec, num_experts=experts, shared_intermediate_size=shared)
    for bug, words, spec, experts in LAYERS[4:]:
        yield bug, words, Case(op="topk_routing", spec=spec, num_experts=experts, dtype="fp32")


def run(bug: str, case: Case, seed: int) -> Diagnosis | None:
    """The diagnosis of one wrong kernel's output; no bug for an empty name."""
    oracle, inputs = Oracle(), case.inputs()
    with np.errstate(over="ignore"):
        outputs = topk(case, inputs, bug) if case.op == "topk_routing" else layer(case, inputs, bug, noise=seed)
    return diagnose(case, outputs, oracle, None)


def main(seeds: int) -> int:
    print("$ python tools/measure_diagnosis.py" + (f" {seeds}" if len(sys.argv) > 1 else ""))
    print(f"{seeds} seeds each, dtypes {', '.join(DTYPES)} in turn; wrong kernels: float32 NumPy, stores in the dtype.")
    print(f"{'op':14} {'bug':38} {'named':>7} {'rms z':>7} {'reference':>10}  other answers")
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        return _measure(pool, seeds)


def _measure(pool: ProcessPoolExecutor, seeds: int) -> int:
    missed = 0
    for bug, words, case in cases():
        named, shown, others = 0, [], []
        for found in pool.map(run, [bug] * seeds, _seeded(case, seeds), range(seeds)):
            if found is not None and found.hypothesis == bug:
                named += 1
                shown.append((found.rms_z, found.rms_z_reference))
            else:
                others.append(found.hypothesis or f"none ({','.join(found.also)})" if found else "nothing")
        missed += named < 0.95 * seeds
        rms, reference = np.median(shown, axis=0) if shown else (np.nan, np.nan)
        print(
            f"{case.op:14} {words:38} {named:>4}/{seeds} {rms:7.2f} {reference:10.3g}  {', '.join(sorted(set(others)))}"
        )
    wrong = checked = 0
    for _, _, case in cases():
        found_in = pool.map(run, [""] * seeds, _seeded(case, seeds), range(seeds))
        wrong += sum(found is not None for found in found_in)
        checked += seeds
    print(f"Right kernels with a diagnosis: {wrong} of {checked}.")
    return int(missed > 0 or wrong > 0)


def _one_thread() -> None:
    """Many processes with many threads each would only wait for one another."""
    threadpool_limits(1, "blas")


def _seeded(case: Case, seeds: int) -> list[Case]:
    """The case with each seed, in each dtype in turn."""
    dtypes = ("fp32",) if case.op == "topk_routing" else DTYPES
    return [replace(case, seed=seed, dtype=dtypes[seed % len(dtypes)]) for seed in range(seeds)]


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
