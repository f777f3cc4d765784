"""Calls each CUDA C++ kernel on small awkward inputs and compares with PyTorch's kernels on the CPU.

For compute-sanitizer: everything else happens on the CPU. With --graphs each call is also captured on a side stream
and replayed with other inputs in the same memory. --narrow leaves out rows that the copy engine moves: what that
writes, initcheck takes for unwritten.
Usage: [compute-sanitizer --tool TOOL] python tools/cuda_small_calls.py [--graphs] [--narrow]
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

import moecheck
from moecheck.kernels.cuda import plan, routing, rows
from moecheck.kernels.torch import permute as torch_rows
from moecheck.kernels.torch import plan as torch_plan
from moecheck.kernels.torch import routing as torch_routing

Inputs = dict[str, Any]
Call = tuple[str, Callable[..., Any], Callable[..., Any], Inputs]
GROUPED = moecheck.RoutingSpec(
    top_k=4, scoring="sigmoid", correction_bias="select", num_expert_groups=4, topk_groups=2, group_score="top2_sum",
    renormalize=True, num_fused_shared_experts=1,
)  # fmt: skip
WIDE = moecheck.RoutingSpec(top_k=22, renormalize=True, renorm_norm=2.0)


def calls(seed: int, *, widest: int) -> Iterator[Call]:
    """Op, kernel, PyTorch's kernel, inputs on the CPU; of equal shapes for every seed."""
    generator = torch.Generator().manual_seed(seed)
    for tokens, experts, top_k, width, dtype in ((67, 60, 3, 44, torch.bfloat16), (300, 7, 2, 13, torch.float16),
                                                 (9, 1024, 8, widest, torch.float32)):  # fmt: skip
        ids = torch.rand(tokens, experts, generator=generator).topk(top_k, dim=1)[1].to(torch.int32)
        ids[::4, -1] = -1
        map_ = torch.full((experts,), -1, dtype=torch.int32)
        map_[::2] = torch.arange((experts + 1) // 2, dtype=torch.int32).flip(0)
        x = torch.randn(tokens, width + 3, generator=generator).to(dtype)[:, :width]
        scale = torch.rand(tokens, 5, generator=generator)
        named = {"topk_ids": ids, "num_experts": experts}
        pair = (rows.moe_permute, torch_rows.permute)
        yield "permute", *pair, {**named, "hidden_states": x.contiguous()}
        yield "permute", *pair, {**named, "hidden_states": x, "hidden_scale": scale, "expert_map": map_}
        sizes = {"intermediate_size": 48, "hidden_size": 64}
        for extra in ({}, {"expert_map": map_}):
            yield "problem_sizes", plan.problem_sizes, torch_plan.problem_sizes, {**named, **sizes, **extra}
            aligned = {**named, "block_size": 16, **extra}
            yield "align_block_size", plan.align_block_size, torch_plan.align_block_size, aligned
        inverse = torch.randperm(tokens * top_k, generator=generator).view(tokens, top_k).to(torch.int32)
        inverse[::3, 0] = -1
        permuted = torch.randint(-8, 8, (tokens * top_k, width), generator=generator).to(dtype)
        weights = torch.randint(1, 5, (tokens, top_k), generator=generator) / 4  # sums are exact
        summed = {"permuted": permuted, "topk_weights": weights, "inv_permuted_idx": inverse}
        yield "unpermute", rows.moe_unpermute, torch_rows.unpermute, summed
        turned = {"x": x, "row_map": torch.arange(tokens, dtype=torch.int32).flip(0)}
        yield "shuffle_rows", rows.shuffle_rows, torch_rows.shuffle_rows, turned
    for experts, dtype, spec in (
        (64, torch.float32, GROUPED), (512, torch.float16, WIDE), (60, torch.bfloat16, moecheck.RoutingSpec(top_k=4)),
        (1000, torch.float32, moecheck.RoutingSpec(top_k=32, softmax_over_selected=True)),
    ):  # fmt: skip
        levels = (torch.arange(experts) - experts // 2) / 2 ** (experts.bit_length() - 3)  # exact in each dtype
        logits = torch.zeros(37, experts + 3)  # rows that begin anywhere
        logits[:, :experts] = torch.stack([levels[torch.randperm(experts, generator=generator)] for _ in logits])
        bias = {"correction_bias": torch.linspace(0.01, 0.3, experts)} if spec.correction_bias != "none" else {}
        for rows_ in (logits.to(dtype)[:, :experts], logits[:, :experts].to(dtype).contiguous()):
            routed = {"router_logits": rows_, "spec": spec, **bias}
            yield "topk_routing", routing.topk_routing, torch_routing.topk_routing, routed


def on_device(inputs: Inputs) -> Inputs:
    """The inputs with their arrays on the GPU, rows as far apart as they were."""
    found = {}
    for name, value in inputs.items():
        if not isinstance(value, torch.Tensor):
            found[name] = value
        elif value.is_contiguous():
            found[name] = value.cuda()
        else:
            found[name] = value._base.cuda()[:, : value.shape[1]]  # type: ignore[union-attr]  # it is a slice
    return found


def compare(op: str, got: Any, expected: Any, inputs: Inputs) -> str:
    """What differs, or an empty string."""
    got, expected = (value if isinstance(value, tuple) else (value,) for value in (got, expected))
    if op == "topk_routing":
        close = torch.allclose(got[0].cpu(), expected[0], rtol=1e-5)
        return "" if close and torch.equal(got[1].cpu(), expected[1]) else "weights or ids"
    used = int(expected[2][-1]) if op == "permute" else None  # rows beyond are unspecified
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        if b is None:
            continue
        cut = slice(used) if number < 2 else slice(None)
        a = a[cut].cpu()
        if op == "align_block_size" and number == 0:
            a, b = a.sort().values, b.sort().values
        if not torch.equal(a, b[cut]):
            return f"output {number}"
    return ""


def replayed(kernel: Callable[..., Any], first: Inputs, second: Inputs) -> Any:
    """The outputs of a graph captured with one set of inputs and replayed with another."""
    buffers, others = on_device(first), on_device(second)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        kernel(**buffers)
        side.synchronize()
        with torch.cuda.graph(graph, stream=side):
            out = kernel(**buffers)
    for name, value in buffers.items():
        if isinstance(value, torch.Tensor):
            value.copy_(others[name])
    graph.replay()
    torch.cuda.synchronize()
    return out


def main() -> int:
    """Compare, print, and return 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--narrow", action="store_true")
    options = parser.parse_args()
    graphs, widest = options.graphs, 256 if options.narrow else 1024
    wrong = 0
    for (op, kernel, by_torch, inputs), (*_, others) in zip(
        calls(0, widest=widest), calls(1, widest=widest), strict=True
    ):
        modes = {"call": (lambda k=kernel, i=inputs: k(**on_device(i)), inputs)}
        if graphs and not (op in ("permute", "problem_sizes") and "expert_map" in inputs):  # a map makes them wait
            modes["graph"] = (lambda k=kernel, i=inputs, o=others: replayed(k, i, o), others)
        for mode, (call, given) in modes.items():
            got = call()
            torch.cuda.synchronize()
            difference = compare(op, got, by_torch(**given), given)
            wrong += bool(difference)
            print(f"{'ok' if not difference else 'DIFFERS: ' + difference:12} {mode:6} {op}", flush=True)
    return int(wrong > 0)


sys.exit(main())
