"""Times the reference of a full-size layer on its sampled tokens, with weights that are made while it runs.

    python tools/bench_sampled_oracle.py --model deepseek-v3 --tokens 4096 --sampled 64 --threads 15

The contract is that of a kernel with fp8 weights and activations in blocks, so that simulated kernels are computed too.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace

from moecheck.models import full_size_cases
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import Oracle
from moecheck.quantization import SCHEMES
from moecheck.quantizer import Quantizer
from moecheck.sampled_inputs import experts_seen

BLOCK = Quantizer(group=128)
CONTRACT = Numerics(gate_up=INPUT, act_times_up=INPUT, weighted=INPUT, a1_quant=BLOCK, a2_quant=BLOCK)


def main() -> None:
    """Print the seconds and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deepseek-v3")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--sampled", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    (case,) = full_size_cases(
        a.model,
        "fused_experts",
        tokens=(a.tokens,),
        dtypes=("bf16",),
        quantizations=(SCHEMES["fp8-block"],),
        plain_weights=False,
        seed=0,
    )
    case = replace(case, sampled=a.sampled)
    wall, cpu = time.perf_counter(), time.process_time()
    values = Oracle(threads=a.threads).values(case, CONTRACT)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    seen, used = experts_seen(case)
    print(f"{case.id}: {len(values.true)} tokens at {seen} of {used} experts")
    print(f"{wall:.1f} s with {a.threads} threads, {cpu:.1f} s of one core, {cpu / wall:.1f} cores busy")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
