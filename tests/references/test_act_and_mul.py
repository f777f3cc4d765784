"""act_and_mul: tables and closed forms, torch's float64 functions, rounding points and sigma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecheck.formats import round_to, store, to_float64
from moecheck.numerics import Numerics
from moecheck.references._activation import activation, activation_terms
from moecheck.references._erf import erfc
from moecheck.references._stores import EXACT, exactly
from moecheck.references.act_and_mul import act_and_mul, activated_estimate, estimate
from moecheck.spec import SWIGLUOAI, ExpertSpec
from tests.bounds import (
    CALIBRATED_RMS,
    DIFFERENCE_BOUND,
    DIFFERENCE_STEP,
    ERFC_ROUNDINGS,
    U64,
    elementwise_bound,
    gamma,
    z_limit,
)
from tests.references.drawn import SPECS, TORCH_DTYPES, as_torch, torch_activation

SILU = ExpertSpec()


@pytest.mark.parametrize(
    ("spec", "g", "u", "expected"),
    [
        pytest.param(SILU, 64.0, 1.5, 96.0, id="silu(64) is 64"),
        pytest.param(SILU, -64.0, 1.0, -64.0 * math.exp(-64.0), id="silu(-64) keeps its relative accuracy"),
        pytest.param(SILU, -math.log(3.0), 4.0, -math.log(3.0), id="sigmoid(-log 3) is 1/4"),
        pytest.param(SPECS["gelu"], 1.0, 1.0, 0.8413447460685429, id="gelu(1) is the normal distribution at 1"),
        pytest.param(SPECS["gelu"], -3.0, 1.0, -3 * 0.0013498980316300933, id="gelu(-3)"),
        pytest.param(SPECS["gelu_tanh"], 1.0, 1.0, 0.8411919906082768, id="gelu_tanh(1), Hendrycks and Gimpel"),
        pytest.param(ExpertSpec(activation="relu2"), 3.0, -2.0, -18.0, id="relu2 gated"),
        pytest.param(ExpertSpec(activation="relu2"), -3.0, -2.0, 0.0, id="relu2 of a negative gate"),
        pytest.param(SWIGLUOAI, 9.0, 8.0, 56.0 / (1 + math.exp(-1.702 * 7)), id="swigluoai above both limits"),
        pytest.param(SWIGLUOAI, 0.5, -9.0, -3.0 / (1 + math.exp(-0.851)), id="swigluoai: u + 1 after the clip"),
        pytest.param(SPECS["clamp before"], 9.0, 9.0, 2.25 / (1 + math.exp(-1.5)), id="limit before: silu(L) L"),
        pytest.param(SPECS["clamp after"], 9.0, -9.0, -2.25, id="limit after: L times -L"),
        pytest.param(SPECS["situ"], 2.0, 1.0, 2 * math.tanh(1.0) / (1 + math.exp(-2.0)), id="situ"),
        pytest.param(
            SPECS["situ of both"],
            2.0,
            -6.0,
            2 * math.tanh(1.0) / (1 + math.exp(-2.0)) * 3 * math.tanh(-2.0),
            id="situ with a beta for up as well",
        ),
        pytest.param(
            ExpertSpec(swiglu_limit=16.0, limit_position="after"),
            15.9,
            17.0,
            16 * 15.9 / (1 + math.exp(-15.9)),
            id="limit after: silu just below it, up at it",
        ),
    ],
)
def test_known_values(spec: ExpertSpec, g: float, u: float, expected: float) -> None:
    h = act_and_mul(x=np.array([[g, u]], dtype=np.float64), spec=spec)
    assert abs(h[0, 0] - expected) <= gamma(ERFC_ROUNDINGS, U64) * abs(expected)


@pytest.mark.parametrize("name", SPECS)
def test_it_is_torch_in_float64(name: str) -> None:
    spec = SPECS[name]
    x = np.random.default_rng(0).standard_normal((50, 64)) * 4.0
    gate, up = (x[:, ::2], x[:, 1::2]) if spec.gate_up_layout == "interleaved" else (x[:, :32], x[:, 32:])
    if not spec.gated:
        gate, up = x, np.ones(x.shape)
    size = np.abs(gate) ** (2 if spec.activation == "relu2" else 1) * (np.abs(up) + spec.swiglu_beta)
    expected = torch_activation(as_torch(x, TORCH_DTYPES["fp32"]).double(), spec).numpy()
    h = act_and_mul(x=x.astype(np.float32), spec=spec)
    assert h.shape == expected.shape
    assert (np.abs(h - expected) <= elementwise_bound(magnitude=size, unit=U64)).all()


@pytest.mark.parametrize(
    ("layout", "gates"),
    [
        pytest.param("up_first", range(20, 40), id="ups first"),
        pytest.param("interleaved_8", (*range(8), *range(16, 24), *range(32, 36)), id="by eight, the last by four"),
        pytest.param("interleaved_16", (*range(16), *range(32, 36)), id="by sixteen, the last by four"),
    ],
)
def test_other_orders_are_halves_with_columns_moved(layout: Any, gates: Sequence[int]) -> None:
    x = np.random.default_rng(3).normal(size=(5, 40))
    ups = [column for column in range(40) if column not in gates]
    halves = x[:, [*gates, *ups]]
    moved = act_and_mul(x=x, spec=replace(SILU, gate_up_layout=layout))
    assert np.array_equal(moved, act_and_mul(x=halves, spec=SILU))


def test_interleaved_is_halves_with_columns_moved() -> None:
    x = np.random.default_rng(0).standard_normal((5, 16))
    halves = np.concatenate([x[:, ::2], x[:, 1::2]], axis=1)
    moved = act_and_mul(x=x, spec=SPECS["silu interleaved"])
    np.testing.assert_array_equal(moved, act_and_mul(x=halves, spec=SILU))


def test_the_input_is_left_alone() -> None:
    for spec in SPECS.values():
        x = np.full((2, 4), -3.0)
        act_and_mul(x=x, spec=spec)
        np.testing.assert_array_equal(x, -3.0)


def test_erfc_agrees_with_the_standard_library() -> None:
    x = np.concatenate([np.linspace(-7.0, 26.5, 33_501), [-np.inf, np.inf, 0.0, -0.0, 0.46875, 4.0]])
    expected = np.array([math.erfc(v) for v in x])
    assert (np.abs(erfc(x) - expected) <= gamma(ERFC_ROUNDINGS, U64) * expected + np.finfo(np.float64).tiny).all()
    assert np.isnan(erfc(np.array([np.nan]))).all()


@pytest.mark.parametrize("name", SPECS)
def test_derivatives_are_slopes(name: str) -> None:
    spec = SPECS[name]
    g = np.linspace(-6.0, 6.0, 400)  # 0, the kink of relu2, is not among them
    upper, lower = activation(g + DIFFERENCE_STEP, spec), activation(g - DIFFERENCE_STEP, spec)
    slope = (upper - lower) / (2.0 * DIFFERENCE_STEP)
    assert np.abs(activation_terms(g, spec).derivative - slope).max() <= DIFFERENCE_BOUND


@pytest.mark.parametrize("part", ["gate", "up"])
@pytest.mark.parametrize("name", SPECS)
def test_an_input_s_variance_arrives_times_the_squared_slope(name: str, part: str) -> None:
    spec = SPECS[name]
    # odd multiples of 1/16: away from the kinks at 0 and at the limits
    x = np.round(np.random.default_rng(5).standard_normal((30, 16)) * 12.0) / 8.0 + 1.0 / 16.0
    moved = np.zeros(x.shape)
    columns = {"halves": slice(0, 8), "interleaved": slice(0, 16, 2)}[spec.gate_up_layout]
    if spec.gated:
        moved[:, columns] = 1.0
        moved = moved if part == "gate" else 1.0 - moved
    else:
        moved[:] = 1.0
    upper, lower = (act_and_mul(x=x + sign * DIFFERENCE_STEP * moved, spec=spec) for sign in (1.0, -1.0))
    slope = (upper - lower) / (2.0 * DIFFERENCE_STEP)
    exact = exactly(x, flips=False)
    with_input = activated_estimate(exact._replace(dense=moved), spec, EXACT).dense
    without = activated_estimate(exact, spec, EXACT).dense
    assert np.abs(np.sqrt(with_input - without) - np.abs(slope)).max() <= DIFFERENCE_BOUND


def test_rounding_points_are_act_product_and_output() -> None:
    g, u = 1.0 + 2.0**-4 + 2.0**-7, 1.0 + 2.0**-1 + 2.0**-7
    x = store(np.array([[g, u]]), "bf16")
    spec = ExpertSpec(activation="relu2")
    exact = g * g * u

    def rounded(**points: str) -> float:
        return float(act_and_mul(x=x, spec=spec, numerics=Numerics(**points), dtype="bf16")[0, 0])  # type: ignore[arg-type]

    def low(value: float) -> float:
        return float(round_to(np.array(value), "bf16"))

    assert rounded(out="fp32") == exact
    assert rounded() == low(exact)
    assert rounded(act="bf16") == low(low(g * g) * u) != low(exact)
    assert rounded(act_times_up="bf16", out="fp32") == low(exact)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sigma_is_that_of_torch(name: str, dtype: str) -> None:
    spec = SPECS[name]
    x = store(np.random.default_rng(3).standard_normal((100, 256)) * 2.0, dtype)
    value, sigma = estimate(x=x, spec=spec)
    h = torch_activation(as_torch(x, TORCH_DTYPES["fp32"]), spec).to(TORCH_DTYPES[dtype]).double().numpy()
    np.testing.assert_array_equal(value, act_and_mul(x=x, spec=spec))
    exact = sigma == 0.0
    assert (h == value)[exact].all()
    z = ((h - value) / np.where(exact, 1.0, sigma))[~exact]
    assert CALIBRATED_RMS[0] <= np.sqrt(np.mean(z**2)) <= CALIBRATED_RMS[1]
    assert np.abs(z).max() <= z_limit(z.size)


@pytest.mark.parametrize("name", ["silu", "silu interleaved", "gelu", "swigluoai", "clamp after"])
def test_sigma_of_a_stored_activation_is_that_of_bf16_torch(name: str) -> None:
    x = store(np.random.default_rng(3).standard_normal((100, 256)), "bf16")
    contract = Numerics(act="bf16", act_times_up="bf16")
    spec = SPECS[name]
    value, sigma = estimate(x=x, spec=spec, numerics=contract)
    low = as_torch(to_float64(x), TORCH_DTYPES["fp32"])
    unit = ExpertSpec(**{**{f: getattr(spec, f) for f in spec.__dataclass_fields__}, "gated": False})
    gate, up = (low[:, ::2], low[:, 1::2]) if spec.gate_up_layout == "interleaved" else low.chunk(2, dim=-1)
    act = torch_activation(gate, unit).bfloat16().float()
    limit = spec.swiglu_limit or float("inf")
    h = (act * (up.clamp(-limit, limit) + spec.swiglu_beta)).bfloat16().double().numpy()
    z = (h - value) / sigma
    assert CALIBRATED_RMS[0] <= np.sqrt(np.mean(z**2)) <= CALIBRATED_RMS[1]
    assert np.abs(z).max() <= z_limit(z.size)
