"""Times one real layer end to end: drawing every expert's weights, and the fused_experts reference on them.

    python tools/bench_large_layer.py --model deepseek-v3 --tokens 128

Weights come from the case's own Philox bits, one expert at a time, never all at once.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import resource
import time

from moecheck.drawn_experts import drawn_experts
from moecheck.inputs import hidden_states
from moecheck.models import MODELS, model_case
from moecheck.references.fused_experts import fused_experts
from moecheck.routing_inputs import topk_ids, topk_weights


def main() -> None:
    """Print the seconds of one full-size oracle with drawing, and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deepseek-v3", choices=sorted(MODELS))
    parser.add_argument("--tokens", type=int, default=128, help="T")
    arguments = parser.parse_args()
    case = model_case(arguments.model, "fused_experts", num_tokens=arguments.tokens, dtype="bf16", full_size=True)
    start = time.perf_counter()
    w13, w2 = drawn_experts(case)
    ids = topk_ids(case)
    out = fused_experts(
        hidden_states=hidden_states(case),
        w13=w13,
        w2=w2,
        topk_weights=topk_weights(case),
        topk_ids=ids,
        spec=case.spec.experts,
    )
    seconds = time.perf_counter() - start
    drawn = len(set(ids.ravel().tolist())) * 3 * case.hidden_size * case.intermediate_size
    print(f"case {case.id}: {drawn / 1e9:.1f}e9 weights drawn, output rms {float((out**2).mean() ** 0.5):.2f}")
    print(f"drawing and oracle {seconds:8.1f} s")
    print(f"peak memory        {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:8.2f} GiB")


if __name__ == "__main__":
    main()
