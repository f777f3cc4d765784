"""Times the CUDA C++ kernels on the GPU at hand: fused gate against PyTorch's composition, rows against a copy.

Each call is timed by CUDA events, after the L2 cache was overwritten and with inputs that change from call to call;
medians. Every output is compared with PyTorch's kernel of the same op first: what differs gets no time.
Usage: python tools/bench_cuda.py [--calls N]
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch

import moecheck
from moecheck.kernels.cuda.routing import topk_routing
from moecheck.kernels.cuda.rows import moe_permute, moe_unpermute, shuffle_rows
from moecheck.kernels.torch import permute as by_torch
from moecheck.kernels.torch.routing import topk_routing as topk_routing_by_torch

DEVICE = "cuda"
HIDDEN, TOP_K, EXPERTS = 7168, 8, 256
DEEPSEEK_V3 = moecheck.RoutingSpec(
    top_k=TOP_K,
    scoring="sigmoid",
    correction_bias="select",
    num_expert_groups=8,
    topk_groups=4,
    group_score="top2_sum",
    renormalize=True,
    renorm_eps=1e-20,
    renorm_eps_rule="add",
    routed_scaling_factor=2.5,
)
NEAR_TIES = 1e-3  # share of tokens whose choice may hang on the last bit of a sigmoid
Inputs = dict[str, Any]


def median_us(call: Callable[..., object], inputs: Sequence[Inputs], calls: int) -> tuple[float, float]:
    """Median and spread (half the distance of the quartiles) of one call in microseconds, L2 cold."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device=DEVICE)  # several times the L2
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    turn = cycle(inputs)
    for _ in range(3):
        call(**next(turn))
    for start, end in events:
        flush.zero_()
        torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]  # the host gets ahead: no launch gap is timed
        start.record()
        call(**next(turn))
        end.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) * 1e3 for start, end in events)
    quartiles = statistics.quantiles(times, n=4)
    return statistics.median(times), (quartiles[2] - quartiles[0]) / 2


def grouped_topk(
    *, router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """DeepSeek-V3's gate as engines compose it of PyTorch's operations (fp32 scores, unsorted top-k)."""
    scores = router_logits.float().sigmoid()
    choice = scores + correction_bias
    groups = choice.view(len(choice), spec.num_expert_groups, -1)
    best = groups.topk(2, dim=-1)[0].sum(dim=-1)
    kept = torch.topk(best, k=spec.topk_groups, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(best).scatter_(1, kept, 1)
    outside = mask.unsqueeze(-1).expand_as(groups).reshape(choice.shape) == 0
    ids = torch.topk(choice.masked_fill(outside, float("-inf")), k=spec.top_k, dim=-1, sorted=False)[1]
    weights = scores.gather(1, ids)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + spec.renorm_eps)
    return weights * spec.routed_scaling_factor, ids.to(torch.int32)


def other_tokens(ours: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor]) -> int:
    """Tokens with other experts, or with other weights than two ways of computing a sigmoid give."""
    (w, i), (w2, i2) = ours, theirs
    order, order2 = i.argsort(dim=1), i2.argsort(dim=1)
    units = torch.finfo(torch.float32).eps * 16 * w.max()
    same = (i.gather(1, order) == i2.gather(1, order2)) & ((w.gather(1, order) - w2.gather(1, order2)).abs() <= units)
    return int((~same.all(dim=1)).sum())


def copy_bandwidth(calls: int) -> float:
    """GB/s of PyTorch's own copy of 4 GB within the device, bytes read and written."""
    x = torch.empty(2 << 30, dtype=torch.int16, device=DEVICE).random_()
    y = torch.empty_like(x)
    us, _ = median_us(lambda: y.copy_(x), [{}], calls)
    return 2 * x.numel() * x.element_size() / us / 1e3


def bench_gate(calls: int) -> None:
    """Fused gate against the two compositions of PyTorch."""
    print(f"\nfused gate: {EXPERTS} experts, 8 groups, top {TOP_K}, DeepSeek-V3's rule")
    print(f"{'tokens':>8}{'logits':>8}{'ours us':>10}{'±':>6}{'torch us':>10}{'±':>6}{'ratio':>8}{'GB/s':>8}")
    for tokens in (16, 256, 5_000, 10_000, 20_000, 40_000):
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [
                {
                    "router_logits": torch.randn(tokens, EXPERTS, device=DEVICE).to(dtype),
                    "correction_bias": torch.rand(EXPERTS, device=DEVICE) / 8,
                    "spec": DEEPSEEK_V3,
                }
                for _ in range(4)
            ]
            exact = {**inputs[0], "router_logits": torch.randn(tokens, EXPERTS, device=DEVICE)}  # bf16 ones have ties
            others = other_tokens(topk_routing(**exact), grouped_topk(**exact))
            if others > NEAR_TIES * tokens:
                print(f"{tokens:>8} the results of {others} tokens differ: not timed")
                continue
            ours, spread = median_us(topk_routing, inputs, calls)
            theirs, spread2 = median_us(grouped_topk, inputs, calls)
            moved = tokens * (EXPERTS * dtype.itemsize + TOP_K * 8)
            name = str(dtype).removeprefix("torch.")[:6]
            print(
                f"{tokens:>8}{name:>8}{ours:>10.1f}{spread:>6.1f}{theirs:>10.1f}{spread2:>6.1f}"
                f"{theirs / ours:>8.1f}{moved / ours / 1e3:>8.0f}"
            )
    logits = torch.randn(512, EXPERTS, device=DEVICE)
    own = {"router_logits": logits, "correction_bias": torch.rand(EXPERTS, device=DEVICE), "spec": DEEPSEEK_V3}
    others = other_tokens(topk_routing(**own), topk_routing_by_torch(**own))
    print(f"tokens of 512 that torch/topk_routing routes otherwise: {others}")


def bench_rows(calls: int, copy: float) -> None:
    """Permute and unpermute against the copy."""
    print(
        f"\nrows of {HIDDEN} bf16, {EXPERTS} experts, top {TOP_K}: bytes read and written over time; "
        f"copy = {copy:.0f} GB/s"
    )
    print(f"{'tokens':>8}{'op':>12}{'us':>10}{'±':>6}{'GB/s':>8}{'of copy':>9}{'torch us':>10}")
    for tokens in (16, 256, 4096, 8192, 16384):
        permutes, unpermutes = [], []
        for _ in range(2):
            x = torch.randn(tokens, HIDDEN, device=DEVICE).bfloat16()
            ids = torch.rand(tokens, EXPERTS, device=DEVICE).topk(TOP_K, dim=1)[1].to(torch.int32)
            permutes.append({"hidden_states": x, "topk_ids": ids, "num_experts": EXPERTS})
            permuted, _, starts, inverse = moe_permute(**permutes[-1])
            rows, _, starts2, inverse2 = by_torch.permute(**permutes[-1])
            right = torch.equal(permuted, rows) and torch.equal(starts, starts2) and torch.equal(inverse, inverse2)
            weights = torch.rand(tokens, TOP_K, device=DEVICE)
            unpermutes.append({"permuted": permuted, "topk_weights": weights, "inv_permuted_idx": inverse})
        moved = tokens * (TOP_K + 1) * HIDDEN * 2
        for name, ours, theirs, inputs in (
            ("permute", moe_permute, by_torch.permute, permutes),
            ("unpermute", moe_unpermute, by_torch.unpermute, unpermutes),
        ):
            if not right:
                print(f"{tokens:>8}{name:>12} the results differ: not timed")
                continue
            us, spread = median_us(ours, inputs, calls)
            slow, _ = median_us(theirs, inputs, max(3, calls // 4))
            rate = moved / us / 1e3
            print(f"{tokens:>8}{name:>12}{us:>10.1f}{spread:>6.1f}{rate:>8.0f}{rate / copy:>9.0%}{slow:>10.1f}")


def check_large_offsets() -> None:
    """Rows beyond 2^31 elements, where an offset of 32 bits has wrapped."""
    tokens = (1 << 31) // (TOP_K * HIDDEN) + 3_000
    x = torch.randint(-9, 9, (tokens, HIDDEN), device=DEVICE, dtype=torch.int8).bfloat16()
    ids = torch.rand(tokens, EXPERTS, device=DEVICE).topk(TOP_K, dim=1)[1].to(torch.int32)
    permuted, _, _, inverse = moe_permute(hidden_states=x, topk_ids=ids, num_experts=EXPERTS)
    weights = torch.full((tokens, TOP_K), 1 / TOP_K, device=DEVICE)
    back = moe_unpermute(permuted=permuted, topk_weights=weights, inv_permuted_idx=inverse)
    rows = torch.arange(permuted.shape[0], device=DEVICE, dtype=torch.int32)
    shuffled = shuffle_rows(x=permuted, row_map=rows.flip(0))
    print(
        f"\n{permuted.numel() / 2**31:.2f} * 2^31 elements: unpermute undoes permute: {torch.equal(back, x)}, "
        f"shuffle_rows turns over: {torch.equal(shuffled[:999], permuted[-999:].flip(0))} and "
        f"{torch.equal(shuffled[-999:], permuted[:999].flip(0))}"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=40)
    calls = parser.parse_args().calls
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {calls} calls a row, medians")
    bench_gate(calls)
    bench_rows(calls, copy_bandwidth(calls))
    check_large_offsets()


main()
