"""Bugs planted in the text of the one-launch kernel: each is found, on a case that the kernel as it is passes.

What only a schedule can do wrong (a barrier dropped, h read before it is stored) an interpreter does not show.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moecheck import ExpertSpec, MoESpec, RoutingSpec
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES
from moecheck.checks.judge import Limits, judge
from moecheck.formats import AnyArray
from moecheck.kernels.triton import _one_launch
from moecheck.kernels.triton.fp8_one_launch import NUMERICS
from moecheck.oracle import Oracle
from moecheck.quantization import SCHEMES
from moecheck.runner.arrays import to_native, to_numpy
from moecheck.runner.poison import poisoned_allocations
from moecheck.scoring.rewrite import Rewrite
from moecheck.scoring.source_kernels import plant
from moecheck.scoring.sources import SourceMutant
from moecheck.weight_layout import Sizes, WeightLayout, to_layout

ORACLE = Oracle()
DEVICE, HOST = "triton/_jit_one_launch.py", "triton/_one_launch.py"
IN_TURNS = WeightLayout(gate_up="interleaved_8")
CASE = Case(
    op="fused_experts",
    spec=MoESpec(routing=RoutingSpec(top_k=2), experts=ExpertSpec(quantization=SCHEMES["fp8-block"])),
    num_tokens=9, num_experts=4, hidden_size=256, intermediate_size=256, dtype="bf16",
)  # fmt: skip
WEIGHT = "tl.load(topk_weights + pairs, mask=valid, other=0.0)[:, None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A change of the source, and how the kernel is called so that it matters."""

    file: str
    function: str
    find: str
    put: str
    which: int | None = None
    ordered: bool = True
    block_m: int = 16


MUTANTS = {
    "first tile of K lost": Planted(
        file=DEVICE, function="hidden_tile", find="range(0, hidden, BLOCK_K)", put="range(BLOCK_K, hidden, BLOCK_K)"),
    "last output tile lost": Planted(
        file=DEVICE, function="one_launch_kernel", find="later >= used * down_tiles",
        put="later >= used * down_tiles - 1"),
    "last group of h lost": Planted(
        file=DEVICE, function="output_tile", find="range(0, inter, GROUP)", put="range(0, inter - GROUP, GROUP)"),
    "scale of x's neighbouring group": Planted(
        file=DEVICE, function="hidden_tile", find="first // GROUP", put="1 - first // GROUP", which=0),
    "scale of w13's neighbouring block": Planted(
        file=DEVICE, function="hidden_tile", find="first // GROUP", put="1 - first // GROUP", which=1),
    "scale of w2's neighbouring rows": Planted(
        file=DEVICE, function="output_tile", find="columns // GROUP", put="(columns // GROUP + 1) % 2"),
    "scales of gates for ups": Planted(
        file=DEVICE, function="hidden_tile", find="2 * (unit // GROUP) + is_up", put="2 * (unit // GROUP)"),
    "scales as halves": Planted(
        file=DEVICE, function="hidden_tile", find="2 * (unit // GROUP) + is_up", put="unit // GROUP + 2 * is_up"),
    "interleaved by 4": Planted(
        file=HOST, function="one_launch", find="CHUNKS[spec.gate_up_layout]", put="4"),
    "gate and up exchanged": Planted(
        file=DEVICE, function="hidden_tile", find="turns % 2", put="1 - turns % 2"),
    "output not zeroed": Planted(
        file=HOST, function="one_launch", find="out.new_zeros(num_tokens, hidden, dtype=torch.float32)",
        put="out.new_empty(num_tokens, hidden, dtype=torch.float32)", ordered=False),
    "routing weight twice": Planted(
        file=DEVICE, function="one_launch_kernel", find=WEIGHT, put=f"{WEIGHT} * {WEIGHT}", ordered=False),
    "amax of signed values": Planted(
        file=DEVICE, function="output_tile", find="tl.max(tl.abs(value), axis=1)", put="tl.max(value, axis=1)"),
    "largest code 240": Planted(
        file=HOST, function="one_launch", find="LARGEST[w13.dtype]", put="240.0"),
    "h by token": Planted(
        file=DEVICE, function="hidden_tile", find="pairs.to(tl.int64)", put="tokens"),
    "last slot not added": Planted(
        file=DEVICE, function="one_launch_kernel", find="range(TOP_K)", put="range(TOP_K - 1)"),
    "finished by the last but one": Planted(
        file=DEVICE, function="one_launch_kernel", find="tl.sum(here.to(tl.int32), axis=1) - 1",
        put="tl.sum(here.to(tl.int32), axis=1) - 2", ordered=False),
    "expert of the block before": Planted(
        file=DEVICE, function="one_launch_kernel", find="expert_ids + block",
        put="expert_ids + tl.maximum(block - 1, 0)"),
    "rows beyond a block of 8 are pair 0": Planted(
        file=DEVICE, function="one_launch_kernel", find="tl.load(sorted_token_ids + block * BLOCK_M + row, "
        "mask=row < BLOCK_M, other=num_pairs)", put="tl.load(sorted_token_ids + block * BLOCK_M + row, "
        "mask=row < BLOCK_M, other=0)", ordered=False, block_m=8),
}  # fmt: skip


@cache
def inputs() -> dict[str, Any]:
    arranged = to_layout(CASE.inputs(), IN_TURNS, spec=CASE.spec, sizes=Sizes(256, 256))
    return {name: to_native(np.array(value), "torch") for name, value in arranged.items()}


def output(one_launch: Callable[..., torch.Tensor], *, ordered: bool, block_m: int) -> AnyArray:
    given = inputs()
    with poisoned_allocations():
        out = one_launch(
            given["hidden_states"], (given["w13"], given["w13_scale"]), (given["w2"], given["w2_scale"]),
            given["topk_weights"], given["topk_ids"], None, IN_TURNS.spec(CASE.spec).experts,
            ordered=ordered, scales_in_turns=True,
            tiles={"block_m": block_m, "up_n": 128, "down_n": 128, "num_warps": 4, "num_stages": 2},
        )  # fmt: skip
    return to_numpy(out)


def fails(out: AnyArray) -> bool:
    judged = judge(CASE, (out,), ORACLE, Limits(), NUMERICS).judgements
    return any(one.verdict in FAILURES for one in judged)


@pytest.mark.parametrize(("ordered", "block_m"), sorted({(one.ordered, one.block_m) for one in MUTANTS.values()}))
def test_the_kernel_as_it_is_passes(ordered: bool, block_m: int) -> None:
    assert not fails(output(_one_launch.one_launch, ordered=ordered, block_m=block_m))


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = MUTANTS[name]
    rewrite = Rewrite(function=one.function, find=one.find, put=one.put, which=one.which)
    mutant = SourceMutant(
        name=f"one launch: {name}", words="", op="fused_experts", kernel="triton._one_launch:one_launch",
        file=one.file, rewrites=(rewrite,),
    )  # fmt: skip
    package = Path(plant(mutant, tmp_path).rpartition(":")[0]).parent
    monkeypatch.syspath_prepend(str(package))
    try:
        planted = importlib.import_module(f"{package.name}.triton._one_launch")
        assert fails(output(planted.one_launch, ordered=one.ordered, block_m=one.block_m))
    finally:
        for module in [other for other in sys.modules if other.split(".")[0] == package.name]:
            del sys.modules[module]
