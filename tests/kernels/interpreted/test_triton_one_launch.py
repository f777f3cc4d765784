"""Experts in one launch, under Triton's interpreter: right for every block size, number of experts and layout."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
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
from moecheck.kernels.triton.fp8_one_launch import NUMERICS, fp8_one_launch_ordered
from moecheck.oracle import Oracle
from moecheck.quantization import SCHEMES
from moecheck.runner.arrays import to_native, to_numpy
from moecheck.tuning import Layer
from moecheck.weight_layout import Sizes, WeightLayout, to_layout

ORACLE = Oracle()
IN_TURNS = WeightLayout(gate_up="interleaved_8")
SMALL = {"block_m": 16, "up_n": 64, "down_n": 128, "num_warps": 4, "num_stages": 2}


def on_torch(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: to_native(np.array(value), "torch") for name, value in inputs.items()}


@cache
def case_of(
    tokens: int = 6, experts: int = 8, top_k: int = 2, *, inter: int = 256, hidden: int = 256, load: str = "random",
    local: int | None = None,
) -> Case:  # fmt: skip
    """A layer of block-quantised weights: two blocks of 128 in each direction, unless it says otherwise."""
    spec = MoESpec(routing=RoutingSpec(top_k=top_k), experts=ExpertSpec(quantization=SCHEMES["fp8-block"]))
    return Case(
        op="fused_experts", spec=spec, num_tokens=tokens, num_experts=experts, hidden_size=hidden,
        intermediate_size=inter, dtype="bf16", load=load, num_local_experts=local, map_style="shuffled",
    )  # fmt: skip


def output(case: Case, *, ordered: bool, in_turns: bool = False, tiles: dict[str, int] | None = None) -> AnyArray:
    """What one launch computes on a case."""
    inputs, spec = case.inputs(), case.spec
    if in_turns:
        inputs = to_layout(inputs, IN_TURNS, spec=spec, sizes=Sizes(case.hidden_size, case.intermediate_size))
        spec = IN_TURNS.spec(spec)
    given = on_torch(inputs)
    return to_numpy(
        _one_launch.one_launch(
            given["hidden_states"], (given["w13"], given["w13_scale"]), (given["w2"], given["w2_scale"]),
            given["topk_weights"], given["topk_ids"], given.get("expert_map"), spec.experts,
            ordered=ordered, scales_in_turns=in_turns, tiles=SMALL | (tiles or {}),
        )
    )  # fmt: skip


def faults(case: Case, out: AnyArray) -> list[str]:
    judged = judge(case, (out,), ORACLE, Limits(), NUMERICS).judgements
    return [f"{one.check}: {one.message}" for one in judged if one.verdict in FAILURES]


@pytest.mark.parametrize(("block_m", "ordered"), [(8, False), (16, True), (32, False), (64, True), (128, False)])
def test_every_block_size(block_m: int, ordered: bool) -> None:
    case = case_of(12, 4, load="skewed")
    assert faults(case, output(case, ordered=ordered, in_turns=ordered, tiles={"block_m": block_m, "up_n": 128})) == []


@pytest.mark.parametrize(
    ("experts", "top_k", "ordered"), [(8, 2, True), (37, 8, False), (256, 8, True), (257, 9, False)]
)
def test_numbers_of_experts(experts: int, top_k: int, ordered: bool) -> None:
    case = case_of(1, experts, top_k, inter=128, hidden=128)
    assert faults(case, output(case, ordered=ordered, in_turns=ordered, tiles={"block_m": 8, "up_n": 128})) == []


@pytest.mark.parametrize("tokens", [0, 1, 5, 33])
def test_numbers_of_tokens(tokens: int) -> None:
    case = case_of(tokens)
    out = output(case, ordered=True, in_turns=True)
    assert out.shape == (tokens, case.hidden_size)
    assert faults(case, out) == []


@pytest.mark.parametrize(
    ("case", "ordered"),
    [
        pytest.param(case_of(7, load="padding", local=3), True, id="experts elsewhere and padding"),
        pytest.param(case_of(7, load="padding", local=3), False, id="elsewhere, in any order"),
        pytest.param(case_of(9, load="one_expert"), False, id="all tokens to the same experts"),
        pytest.param(case_of(5, inter=72, hidden=144), True, id="ragged blocks"),
        pytest.param(case_of(5, inter=200, hidden=136), False, id="a block of gates and ups"),
    ],
)
def test_other_cases(case: Case, ordered: bool) -> None:
    assert faults(case, output(case, ordered=ordered)) == []


@pytest.mark.parametrize("tiles", [{"up_n": 16, "down_n": 32}, {"up_n": 128, "down_n": 256}])
def test_tiles_do_not_change_the_bits_but_for_the_order_of_additions(tiles: dict[str, int]) -> None:
    case = case_of()
    assert np.array_equal(output(case, ordered=True), output(case, ordered=True, tiles=tiles))


def test_the_layout_does_not_change_the_bits() -> None:
    case = case_of()
    plain = output(case, ordered=True)
    assert np.array_equal(output(case, ordered=True, in_turns=True), plain)
    interleaved = replace(case.spec.experts, gate_up_layout="interleaved_8")
    assert interleaved == IN_TURNS.spec(case.spec).experts
    given = on_torch(to_layout(case.inputs(), IN_TURNS, spec=case.spec, sizes=Sizes(256, 256)))
    assert np.array_equal(to_numpy(fp8_one_launch_ordered(**given, spec=interleaved)), plain)


def test_a_call_leaves_nothing_behind_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was just given back holds what the call before left there."""
    case = case_of(3)
    first = output(case, ordered=False)
    for _ in range(2):
        torch.full((1 << 16,), 7, dtype=torch.int32)
        assert np.array_equal(output(case, ordered=False), first)


@pytest.mark.parametrize("tokens", [1, 16, 64, 1024, 4096])
@pytest.mark.parametrize("experts", [8, 37, 256, 257])
def test_the_rule_gives_numbers_that_can_work(tokens: int, experts: int) -> None:
    layer = Layer(device="a GPU", experts=experts, intermediate=256, hidden=7168, top_k=8, weights="fp8-block")
    found = _one_launch.by_rule(layer, tokens)
    assert _one_launch.problem(found, layer) is None
    assert all(found[name] in allowed for name, allowed in _one_launch.TUNING.values.items())
