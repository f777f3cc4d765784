"""Input recipes: what is drawn has the formats, scales and routing that a test's own inputs have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from moecheck.audit import PRESETS, Draw, Recipe
from moecheck.cases import Case
from moecheck.formats import round_to, to_float64
from moecheck.spec import MoESpec, RoutingSpec
from tests.bounds import U32, gamma

KEY = ("a test",)
CASE = Case(op="fused_experts", num_tokens=24, num_experts=6, hidden_size=64, intermediate_size=32)


def codes(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What torch makes of values / scale in e4m3fn, as float64."""
    quotient = torch.from_numpy(values.astype(np.float32)) / torch.from_numpy(scale.astype(np.float32))
    return quotient.to(torch.float8_e4m3fn).double().numpy()


def test_plain_numbers_are_those_of_the_cases_format() -> None:
    values = Draw(std=0.1).matrix(KEY, (64, 64), "bf16")
    assert np.array_equal(values, round_to(values, "bf16"))
    assert not np.array_equal(values, Draw(std=0.1).matrix(("another",), (64, 64), "bf16"))
    assert np.array_equal(2 * values, Draw(std=0.2).matrix(KEY, (64, 64), "bf16"))


@pytest.mark.parametrize("block", [(0, 0), (1, 0), (1, 128), (128, 128)], ids=str)
def test_quantised_numbers_are_codes_times_the_scale_of_their_block(block: tuple[int, int]) -> None:
    shape = (130, 200)  # the last blocks are cut off
    plain = Draw(std=0.1).matrix(KEY, shape, "bf16")
    values = Draw(std=0.1, fp8="scaled", block=block).matrix(KEY, shape, "bf16")
    high, wide = block[0] or shape[0], block[1] or shape[1]
    for top in range(0, shape[0], high):
        for left in range(0, shape[1], wide):
            part = np.s_[top : top + high, left : left + wide]
            scale = np.abs(plain[part]).max().astype(np.float32) / np.float32(448)
            assert np.array_equal(values[part], codes(plain[part], np.full(plain[part].shape, scale)) * float(scale))


def test_codes_are_drawn_apart_from_their_scales() -> None:
    drawn = Draw(std=50.0, fp8="codes", block=(128, 128), scale_std=0.001)
    values = drawn.matrix(KEY, (128, 128), "bf16")
    plain = Draw(std=50.0).matrix(KEY, (128, 128), "fp32")
    largest = np.unravel_index(np.abs(plain).argmax(), plain.shape)
    scale = values[largest] / codes(plain, np.ones_like(plain))[largest]
    assert np.array_equal(values, codes(plain, np.ones_like(plain)) * scale)
    assert abs(scale) < 0.004  # four standard deviations, the most that is drawn
    assert np.array_equal(drawn.times(2).matrix(KEY, (128, 128), "bf16"), 2 * values)


def test_numbers_are_cut_off_and_zeroed() -> None:
    clipped = Draw(clip=2.0).matrix(KEY, (100, 100), "bf16")
    assert np.abs(clipped).max() == 2.0
    sparse = Draw(zeros=0.75).matrix(KEY, (100, 100), "bf16")
    spread = np.sqrt(0.75 * 0.25 / sparse.size)
    assert abs((sparse == 0).mean() - 0.75) <= 6 * spread  # no normal number of the table is 0


def test_a_layer_that_is_four_times_narrower_has_weights_that_are_twice_as_large() -> None:
    recipe = Recipe(hidden=Draw(std=0.1), w13=Draw(std=0.1), w2=Draw(std=0.1))
    inputs, wider = recipe.inputs(CASE), recipe.widened(4, 16).inputs(CASE)
    assert np.array_equal(wider["w13"], 2 * inputs["w13"])
    assert np.array_equal(wider["w2"], 4 * inputs["w2"])
    assert np.array_equal(wider["hidden_states"], inputs["hidden_states"])


def test_routed_weights_are_a_softmax_over_all_experts() -> None:
    inputs = Recipe().inputs(replace(CASE, spec=MoESpec(routing=RoutingSpec(top_k=6))))
    assert (np.abs(inputs["topk_weights"].sum(axis=1) - 1) <= gamma(12, U32)).all()
    assert (np.sort(inputs["topk_ids"], axis=1) == np.arange(6)).all()


def test_a_router_over_more_experts_gives_smaller_weights_to_distinct_experts() -> None:
    few, many = Recipe().inputs(CASE), Recipe(router_experts=40).inputs(CASE)
    assert many["topk_weights"].sum() < few["topk_weights"].sum()
    assert (many["topk_ids"] < CASE.num_experts).all()
    assert all(len(set(row)) == CASE.spec.routing.top_k for row in many["topk_ids"].tolist())


@pytest.mark.parametrize("renormalize", [True, False])
def test_raw_logits_as_weights(renormalize: bool) -> None:
    routing = RoutingSpec(top_k=4, renormalize=renormalize)
    weights = Recipe(slots="raw_logits").inputs(replace(CASE, spec=MoESpec(routing=routing)))["topk_weights"]
    assert (np.diff(weights, axis=1) <= 0).all()
    if renormalize:
        assert (np.abs(weights.sum(axis=1) - 1) <= gamma(8, U32)).all()
    else:
        assert (np.abs(weights.mean(axis=1) - 28.5) < 4).all()  # 30, 29, 28, 27, each less than 4 sigma off


def test_ids_with_replacement_end_with_the_last_expert() -> None:
    case = replace(CASE, num_tokens=200, spec=MoESpec(routing=RoutingSpec(top_k=5)))
    inputs = Recipe(slots="with_replacement", weights_factor=2.5).inputs(case)
    ids = inputs["topk_ids"]
    assert (ids[:, -1] == 5).all()
    assert (ids[:, :-1] < 5).all()
    assert any(len(set(row)) < 4 for row in ids[:, :-1].tolist())
    assert (np.abs(inputs["topk_weights"].sum(axis=1) - 2.5) <= 2.5 * gamma(12, U32)).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_inputs_are_the_same_for_the_same_seed_only(name: str) -> None:
    preset = PRESETS[name]
    first, again, other = (preset.subject(preset.settings[0], seed).inputs for seed in (3, 3, 4))
    assert first.keys() == again.keys() == other.keys()
    for key in first:
        assert np.array_equal(to_float64(first[key]), to_float64(again[key]))
    data = next(key for key in ("hidden_states", "x", "router_logits") if key in first)
    assert first[data].shape != other[data].shape or not np.array_equal(first[data], other[data])
