"""Times the Triton experts and gate on this GPU, part by part and whole, beside torch's grouped_mm composition.

Each time is the median over calls that all find a cold L2; a whole call is timed as launched from Python and as a
replayed CUDA graph. Usage: tools/bench_triton.py [--shapes mixtral,qwen3,deepseek] [--tokens 16,256,4096]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import click
import torch

from moecheck.kernels.torch.grouped_mm import fused_experts as composition
from moecheck.kernels.torch.routing import topk_routing as torch_gate
from moecheck.kernels.triton import experts, routing
from moecheck.kernels.triton._launch import tiles_of_experts
from moecheck.kernels.triton.align import align_block_size
from moecheck.kernels.triton.rows import permute, sum_slots, unpermute
from moecheck.spec import ExpertSpec, RoutingSpec

Run = Callable[[], object]
# experts, intermediate, hidden, top_k
SHAPES = {
    "mixtral": (8, 14336, 4096, 2),
    "qwen3": (128, 768, 2048, 8),
    "deepseek": (256, 256, 7168, 8),
}
DEEPSEEK = RoutingSpec(
    top_k=8, scoring="sigmoid", correction_bias="select", num_expert_groups=8, topk_groups=4, group_score="top2_sum",
    renormalize=True, renorm_eps=1e-20, renorm_eps_rule="add", routed_scaling_factor=2.5,
)  # fmt: skip
COLD = 256 << 20  # bytes written before each call, four times the L2 cache
REPEATS = 15


def random_weights(name: str, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """w13 [E, 2I, H] and w2 [E, H, I] with products of about 1."""
    _, intermediate, hidden, _ = SHAPES[name]
    generator = torch.Generator(device="cuda").manual_seed(1)
    w13 = torch.empty(experts, 2 * intermediate, hidden, device="cuda", dtype=torch.bfloat16)
    w2 = torch.empty(experts, hidden, intermediate, device="cuda", dtype=torch.bfloat16)
    for e in range(experts):
        w13[e].normal_(std=hidden**-0.5, generator=generator)
        w2[e].normal_(std=intermediate**-0.5, generator=generator)
    return w13, w2


def microseconds(run: Run, cold: torch.Tensor) -> float:
    """Median over calls, each behind a write that empties L2."""
    for _ in range(3):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPEATS)]
    for start, end in events:
        cold.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(start.elapsed_time(end) for start, end in events)


def replayed(run: Run) -> Run:
    """The call as a CUDA graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def bench_experts(name: str, tokens: list[int], cold: torch.Tensor) -> None:
    """One line for each number of tokens."""
    count, intermediate, hidden, top_k = SHAPES[name]
    w13, w2 = random_weights(name, count)
    spec = ExpertSpec()
    for number in tokens:
        generator = torch.Generator(device="cuda").manual_seed(number + 1)
        x = torch.randn(number, hidden, generator=generator, device="cuda", dtype=torch.bfloat16)
        logits = torch.randn(number, count, generator=generator, device="cuda")
        weights, ids = torch.softmax(logits, dim=1).topk(top_k, dim=1)
        ids = ids.to(torch.int32)
        given = {"hidden_states": x, "w13": w13, "w2": w2, "topk_weights": weights, "topk_ids": ids, "spec": spec}
        blocks = experts.Blocks(x, w13, w2, ids, weights, expert_map=None)
        h = blocks.gate_up(x, w13, None, spec)
        y = blocks.gemm(h, w2, None, part="down", weighted=True)
        rows = tiles_of_experts(x, w13, w2, ids).block_m
        parts: dict[str, Run] = {
            "align": lambda i=ids, m=rows: align_block_size(topk_ids=i, block_size=m, num_experts=count),
            "gate_up": lambda b=blocks, x=x: b.gate_up(x, w13, None, spec),
            "down": lambda b=blocks, h=h: b.gemm(h, w2, None, part="down", weighted=True),
            "sum": lambda y=y, i=ids: sum_slots(y, i, None, dtype=torch.bfloat16),
        }
        ours: Run = lambda g=given: experts.fused_gate_up(**g)  # noqa: E731
        theirs: Run = lambda g=given: composition(**g)  # noqa: E731
        difference = (ours() - theirs()).float().norm() / theirs().float().norm()
        times = {part: microseconds(replayed(run), cold) for part, run in parts.items()}
        whole, graph, peer = microseconds(ours, cold), microseconds(replayed(ours), cold), microseconds(theirs, cold)
        used = ids.unique().numel()
        products = 6 * number * top_k * intermediate * hidden
        moved = 6 * used * intermediate * hidden
        click.echo(
            f"{name:9}{number:6}  eager {whole:7.1f}  graph {graph:7.1f}  grouped_mm {peer:7.1f}  "
            f"{products / graph / 1e6:5.0f} TFLOP/s {moved / graph / 1e6:5.2f} TB/s of weights  "
            + "  ".join(f"{part} {time:.1f}" for part, time in times.items())
            + f"  difference {difference:.1e}"
        )


def bench_rows(cold: torch.Tensor) -> None:
    """The gate, permute and unpermute."""
    for tokens in (16, 5000, 40000):
        logits = torch.randn(tokens, 256, device="cuda")
        bias = torch.rand(256, device="cuda")
        given = {"router_logits": logits, "correction_bias": bias, "spec": DEEPSEEK}
        try:
            ours = microseconds(replayed(lambda g=given: routing.topk_routing(**g)), cold)
        except Exception as error:
            click.echo(f"gate {tokens}: {error}")
            continue
        theirs = microseconds(replayed(lambda g=given: torch_gate(**g)), cold)
        click.echo(f"gate 256 experts, {tokens} tokens: {ours:.1f} us, torch {theirs:.1f} us")
    for tokens, hidden in ((4096, 7168), (16384, 4096)):
        x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
        weights, ids = torch.rand(tokens, 256, device="cuda").topk(8, dim=1)
        ids = ids.to(torch.int32)
        permuted, _, _, inverse = permute(hidden_states=x, topk_ids=ids, num_experts=256)
        there: Run = lambda x=x, i=ids: permute(hidden_states=x, topk_ids=i, num_experts=256)  # noqa: E731
        back: Run = lambda p=permuted, w=weights, i=inverse: unpermute(  # noqa: E731
            permuted=p, topk_weights=w, inv_permuted_idx=i
        )
        down, up = microseconds(replayed(there), cold), microseconds(replayed(back), cold)
        copy = microseconds(lambda p=permuted: p.clone(), cold)
        moved, copied = 2 * (x.numel() + permuted.numel()), 4 * permuted.numel()
        click.echo(
            f"permute {tokens} x {hidden}: {down:.1f} us, {moved / down / 1e6:.2f} TB/s; unpermute {up:.1f} us, "
            f"{moved / up / 1e6:.2f} TB/s; a copy {copied / copy / 1e6:.2f} TB/s"
        )


def main() -> int:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="mixtral,qwen3,deepseek")
    parser.add_argument("--tokens", default="16,256,4096")
    given = parser.parse_args()
    cold = torch.empty(COLD, dtype=torch.int8, device="cuda")
    click.echo(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; times in us")
    for name in given.shapes.split(","):
        bench_experts(name, [int(one) for one in given.tokens.split(",")], cold)
    bench_rows(cold)
    return 0


if __name__ == "__main__":
    sys.exit(main())
