"""Measures tiles of the Triton experts on this GPU and writes those that were fastest, in the form of tiles.json.

Every candidate's output is compared with the rule's tiles first: one that differs by more than the order of additions
gets no time. Candidates compile in processes of their own, then each is timed alone.
Usage: tools/tune_triton.py OUT.json [--shapes mixtral,qwen3,deepseek] [--tokens 16,256,4096]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import click
import torch

from moecheck.kernels.triton._tiles import ITEMSIZE, Configuration, Shape, Tiles, as_entry, by_rule, problem
from moecheck.kernels.triton.experts import Blocks
from moecheck.spec import ExpertSpec

# experts, intermediate, hidden, top_k
SHAPES = {
    "mixtral": (8, 14336, 4096, 2),
    "qwen3": (128, 768, 2048, 8),
    "deepseek": (256, 256, 7168, 8),
}
# block_n, block_k, num_warps, num_stages, by rows of a block. gate_up's block_n counts pairs of a gate and an up.
FIRST = {
    16: [(16, 256, 4, 4), (32, 128, 4, 4), (32, 128, 4, 5), (32, 256, 4, 3), (64, 64, 4, 5), (64, 128, 4, 3),
         (64, 128, 4, 4), (64, 128, 8, 3), (128, 64, 4, 4), (32, 128, 8, 4), (64, 256, 8, 3)],
    32: [(32, 128, 4, 4), (64, 64, 4, 4), (64, 128, 4, 3), (64, 128, 8, 3), (32, 256, 4, 3)],
    64: [(64, 64, 4, 4), (64, 128, 4, 3), (128, 64, 4, 3), (128, 64, 8, 4), (64, 128, 8, 3), (32, 128, 4, 4)],
    128: [(128, 64, 8, 3), (128, 64, 8, 4), (64, 64, 4, 4), (64, 64, 8, 4), (64, 128, 8, 3), (64, 64, 4, 3)],
}  # fmt: skip
SECOND = {
    16: [(64, 128, 4, 4), (64, 128, 4, 3), (128, 128, 4, 3), (128, 128, 4, 4), (128, 64, 4, 4), (64, 256, 4, 3),
         (128, 128, 4, 2), (64, 256, 4, 1), (128, 256, 4, 1), (256, 64, 4, 4), (256, 64, 8, 3), (128, 64, 4, 3)],
    32: [(64, 128, 4, 4), (128, 128, 4, 3), (128, 128, 4, 2), (128, 64, 4, 4), (64, 256, 4, 3)],
    64: [(128, 64, 4, 4), (128, 128, 4, 3), (256, 64, 4, 3), (256, 64, 8, 4), (64, 128, 4, 4), (128, 64, 4, 3)],
    128: [(256, 64, 8, 3), (256, 64, 8, 4), (128, 64, 4, 4), (128, 64, 8, 4), (128, 128, 8, 3), (128, 64, 4, 3)],
}  # fmt: skip
GROUPS = (1, 4, 16, 64)
LARGEST_DIFFERENCE = 2.0**-7  # of norms, between outputs in bf16 whose sums were added in another order
PROMISING = 1.25  # what a first, short timing may exceed the best by
Run = Callable[[], torch.Tensor]


def tiles(candidate: tuple[int, int, int, int], group_m: int) -> Tiles:
    """A candidate as a record."""
    block_n, block_k, num_warps, num_stages = candidate
    return Tiles(block_n=block_n, block_k=block_k, group_m=group_m, num_warps=num_warps, num_stages=num_stages)


def candidates(block_m: int) -> Iterable[Configuration]:
    """Pairs of tiles whose first and second parts each appear once."""
    first = [tiles(one, 16 if block_m > 64 else 4) for one in FIRST[block_m]]
    second = [tiles(one, 16 if block_m > 64 else 4) for one in SECOND[block_m]]
    for i in range(max(len(first), len(second))):
        found = Configuration(block_m=block_m, gate_up=first[i % len(first)], down=second[i % len(second)])
        if problem(found, ITEMSIZE["bf16"]) is None:
            yield found


def rows_of_blocks(pairs: int, experts: int) -> list[int]:
    """Sizes of blocks worth trying: about the mean rows of an expert."""
    mean = pairs / experts
    return [m for m in (16, 32, 64, 128) if (m <= 16 or mean >= m / 4) and mean <= m * (3 if m < 128 else 1e9)]


class Trial:
    """The inputs of one shape and number of tokens, and launches over them."""

    def __init__(self, name: str, tokens: int, weights: tuple[torch.Tensor, torch.Tensor]) -> None:
        experts, intermediate, hidden, top_k = SHAPES[name]
        generator = torch.Generator(device="cuda").manual_seed(tokens)
        self.x = torch.randn(tokens, hidden, generator=generator, device="cuda", dtype=torch.bfloat16)
        logits = torch.randn(tokens, experts, generator=generator, device="cuda")
        self.weights, ids = torch.softmax(logits, dim=1).topk(top_k, dim=1)
        self.ids, (self.w13, self.w2) = ids.to(torch.int32), weights
        self.h = torch.randn(tokens * top_k, intermediate, generator=generator, device="cuda", dtype=torch.bfloat16)

    def blocks(self, found: Configuration) -> Blocks:
        """The sorted blocks of a configuration."""
        return Blocks(self.x, self.w13, self.w2, self.ids, self.weights, expert_map=None, tiles=found)

    def first(self, found: Configuration) -> Run:
        blocks, spec = self.blocks(found), ExpertSpec()
        return lambda: blocks.gate_up(self.x, self.w13, None, spec)

    def second(self, found: Configuration) -> Run:
        blocks = self.blocks(found)
        return lambda: blocks.gemm(self.h, self.w2, None, part="down", weighted=True)


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


def compile_all(job: tuple[str, list[Configuration]]) -> list[str]:
    """Run each configuration once on one expert, which fills Triton's cache; the sentences of those that fail."""
    name, found = job
    failed = []
    weights = random_weights(name, 1)
    trial = Trial(name, 16, weights)
    trial.ids.zero_()
    for one in found:
        try:
            trial.first(one)()
            trial.second(one)()
        except Exception as error:  # too many registers, say: it gets no time either
            failed.append(f"{name} {one}: {type(error).__name__} {str(error)[:80]}")
    torch.cuda.synchronize()
    return failed


def milliseconds(run: Run, repeats: int) -> float:
    """Median time of a call on the device."""
    run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(events))


def fastest(
    make: Callable[[Configuration], Run], found: list[Configuration], rule: torch.Tensor
) -> list[tuple[float, Configuration]]:
    """Times of the candidates whose output is right, best first."""
    short = []
    for one in found:
        try:
            run = make(one)
            out = run()
            difference = ((out - rule).float().norm() / rule.float().norm()).item()
            if not difference <= LARGEST_DIFFERENCE:
                click.echo(f"WRONG by {difference:.2g}: {one}")
                continue
            short.append((milliseconds(run, 3), one))
        except Exception as error:
            click.echo(f"{type(error).__name__}: {one}")
    short.sort(key=lambda pair: pair[0])
    kept = [one for ms, one in short if ms <= PROMISING * short[0][0]]
    return sorted(((milliseconds(make(one), 12), one) for one in kept), key=lambda pair: pair[0])


def tune(name: str, tokens: int, weights: tuple[torch.Tensor, torch.Tensor]) -> dict[str, object]:
    """The entry of one shape and number of tokens."""
    experts, intermediate, hidden, top_k = SHAPES[name]
    pairs = tokens * top_k
    trial = Trial(name, tokens, weights)
    default = by_rule(experts=experts, itemsize=2, pairs=pairs)
    references = trial.first(default)(), trial.second(default)()
    best: tuple[float, Configuration] | None = None
    for block_m in rows_of_blocks(pairs, experts):
        found = list(candidates(block_m))
        firsts = fastest(trial.first, distinct(found, "gate_up"), references[0])
        seconds = fastest(trial.second, distinct(found, "down"), references[1])
        if not firsts or not seconds:
            continue
        both = Configuration(block_m=block_m, gate_up=firsts[0][1].gate_up, down=seconds[0][1].down)
        total = firsts[0][0] + seconds[0][0]
        for part, listed in (("gate_up", firsts), ("down", seconds)):
            click.echo(f"{name} {tokens} m{block_m} {part}: " + "; ".join(
                f"{ms * 1e3:.0f} us {brief(getattr(one, part))}" for ms, one in listed[:4]))  # fmt: skip
        if best is None or total < best[0]:
            best = total, both
    assert best is not None
    chosen, shown = best[1], []
    for part, make, reference in (("gate_up", trial.first, references[0]), ("down", trial.second, references[1])):
        grouped = [replace(chosen, **{part: replace(getattr(chosen, part), group_m=g)}) for g in GROUPS]
        ms, winner = fastest(make, grouped, reference)[0]
        chosen = replace(chosen, **{part: getattr(winner, part)})
        shown.append(ms)
    click.echo(f"==> {name} {tokens}: {shown[0] * 1e3:.0f} + {shown[1] * 1e3:.0f} us, m{chosen.block_m} "
          f"{brief(chosen.gate_up)} {brief(chosen.down)}")  # fmt: skip
    shape = Shape(
        device=torch.cuda.get_device_name(), experts=experts, intermediate=intermediate, hidden=hidden, dtype="bf16"
    )
    return as_entry(shape, pairs, chosen)


def distinct(found: list[Configuration], part: str) -> list[Configuration]:
    """Those whose `part` has not appeared before."""
    seen = {getattr(one, part): one for one in reversed(found)}
    return list(reversed(seen.values()))


def brief(one: Tiles) -> str:
    """`64x128 g4 w4 s3`."""
    return f"{one.block_n}x{one.block_k} g{one.group_m} w{one.num_warps} s{one.num_stages}"


def needed(names: list[str], tokens: list[int]) -> Iterable[tuple[str, int]]:
    """A shape and a size of blocks for each code that has to be compiled: sizes do not count, top_k does."""
    seen = set()
    for name in names:
        experts, _, _, top_k = SHAPES[name]
        for block_m in sorted({m for t in tokens for m in rows_of_blocks(t * top_k, experts)}):
            if (block_m, top_k) not in seen:
                seen.add((block_m, top_k))
                yield name, block_m


def main() -> int:
    """Tune, print what was measured, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", default="mixtral,qwen3,deepseek")
    parser.add_argument("--tokens", default="16,256,4096")
    parser.add_argument("--jobs", type=int, default=14)
    given = parser.parse_args()
    names, tokens = given.shapes.split(","), [int(one) for one in given.tokens.split(",")]
    start = time.perf_counter()
    jobs = [
        (name, [one for i, one in enumerate(candidates(block_m)) if i % 3 == share])
        for name, block_m in needed(names, tokens)
        for share in range(3)
    ]
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for failed in pool.imap_unordered(compile_all, jobs):
            click.echo("\n".join(failed), nl=bool(failed))
    click.echo(f"compiled in {time.perf_counter() - start:.0f} s")
    entries = []
    for name in names:
        weights = random_weights(name, SHAPES[name][0])
        entries += [tune(name, one, weights) for one in tokens]
        del weights
        lines = ",\n".join(json.dumps(entry) for entry in entries)
        given.out.write_text(f'{{"schema": 1, "entries": [\n{lines}\n]}}\n', encoding="utf-8")
    click.echo(f"tuned in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
