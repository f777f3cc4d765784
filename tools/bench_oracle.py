"""Measures what the fused_experts reference costs beside its own matrix products, in one run.

    python tools/bench_oracle.py --tokens 2048 --hidden 7168 --intermediate 2048 --experts 256 --top-k 8

One expert's float64 arrays stand for all experts, so that drawing weights does not count; rows are spread evenly over
the experts. `np.matmul` does the same multiply-adds: two products per expert, on rows gathered beforehand.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.references.fused_experts import estimate, fused_experts
from moecheck.spec import ExpertSpec


class SameForAll:
    """A lazy stack of experts whose matrices are all the same array."""

    def __init__(self, matrix: Float64, num_experts: int) -> None:
        self._matrix = matrix
        self.shape: tuple[int, ...] = (num_experts, *matrix.shape)

    def __getitem__(self, expert: int, /) -> AnyArray:
        return self._matrix


def main() -> None:
    """Print the seconds of the oracle and of np.matmul, their ratio, and the peak memory."""
    a = _arguments()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((a.tokens, a.hidden))
    w13 = rng.standard_normal((2 * a.intermediate, a.hidden)) * (2.0 / np.sqrt(a.hidden))
    w2 = rng.standard_normal((a.hidden, a.intermediate)) / np.sqrt(a.intermediate)
    slots = np.arange(a.tokens * a.top_k).reshape(a.tokens, a.top_k) % a.experts
    ids = rng.permutation(a.experts)[slots].astype(np.int32)
    call: dict[str, Any] = {
        "hidden_states": x,
        "w13": SameForAll(w13, a.experts),
        "w2": SameForAll(w2, a.experts),
        "topk_weights": rng.random((a.tokens, a.top_k)),
        "topk_ids": ids,
        "spec": ExpertSpec(activation=a.activation),
    }
    counts = np.bincount(ids.ravel(), minlength=a.experts)

    def matmul() -> None:
        for count in counts:
            rows = np.resize(x, (count, a.hidden))
            gate_up = rows @ w13.T
            _ = gate_up[:, : a.intermediate] @ w2.T

    flops = 6.0 * a.tokens * a.top_k * a.hidden * a.intermediate
    base = _seconds(matmul)
    print(f"{flops / 1e12:.3f} TFLOP in float64, {counts.min()} to {counts.max()} rows per expert")
    print(f"np.matmul      {base:8.2f} s  {flops / base / 1e9:6.1f} GFLOP/s")
    value = _seconds(lambda: fused_experts(**call))
    print(f"fused_experts  {value:8.2f} s  ratio {value / base:.2f}")
    if a.sigma:
        both = _seconds(lambda: estimate(**call, dtype="bf16"))
        print(f"estimate{both:8.2f} s  ratio {both / base:.2f} (twice the multiply-adds)")
    print(f"peak memory    {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:8.2f} GiB")


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="T")
    parser.add_argument("--hidden", type=int, default=7168, help="H")
    parser.add_argument("--intermediate", type=int, default=2048, help="I")
    parser.add_argument("--experts", type=int, default=256, help="E")
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--activation", default="silu", help="activation of ExpertSpec")
    parser.add_argument("--sigma", action="store_true", help="also time estimate")
    return parser.parse_args()


if __name__ == "__main__":
    main()
