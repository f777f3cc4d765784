"""fused_experts as a contract: bit agreement with real low-precision loops, and the calibration of sigma."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecheck.formats import Float64, round_to, to_float64
from moecheck.numerics import Numerics
from moecheck.references._stores import exactly
from moecheck.references.fused_experts import estimate, fused_experts
from moecheck.spec import ExpertSpec
from tests.bounds import AGREEMENT, BLOCKED_RMS, CALIBRATED_RMS, DIFFERENCE_STEP, SLOPE_BOUND, U32, z_limit
from tests.references.drawn import SPECS, Drawn, draw, torch_eager

SPEC = ExpertSpec()
SHAPES = [
    pytest.param((48, 16, 256, 128, 4), id="16 experts, top 4"),
    pytest.param((48, 8, 128, 256, 2), id="8 experts, top 2"),
    pytest.param((33, 5, 96, 40, 3), id="small and ragged"),
]


def all_stored(dtype: str) -> Numerics:
    """Every store in `dtype`, summed in expert order: an eager loop with index_add."""
    return Numerics(
        topk_weights=dtype,
        gate_up=dtype,
        act=dtype,
        act_times_up=dtype,
        per_expert=dtype,
        weighted=dtype,
        combine=dtype,
        combine_order="expert",
    )


def drawn(shape: tuple[int, ...], dtype: str, spec: ExpertSpec = SPEC) -> Drawn:
    tokens, experts, hidden, intermediate, top_k = shape
    return draw(
        tokens=tokens, experts=experts, hidden=hidden, intermediate=intermediate, top_k=top_k, spec=spec, dtype=dtype
    )


def agreement(a: Float64, b: Float64) -> float:
    return float(np.mean(a == b))


def assert_calibrated(z: Float64, limits: tuple[float, float]) -> None:
    assert limits[0] <= np.sqrt(np.mean(z**2)) <= limits[1]
    assert np.abs(z).max() <= z_limit(z.size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_right_contract_predicts_an_eager_loop_bit_for_bit(shape: tuple[int, ...], dtype: str) -> None:
    case = drawn(shape, dtype)
    eager = torch_eager(case, SPEC, dtype)
    contract = all_stored(dtype)
    assert agreement(eager, fused_experts(**case.kwargs, spec=SPEC, numerics=contract)) >= AGREEMENT
    wrong = [
        replace(contract, act="fp32"),
        replace(contract, gate_up="fp32"),
        replace(contract, act_times_up="fp32"),
        replace(contract, per_expert="fp32"),
        replace(contract, weighted="fp32"),
        replace(contract, topk_weights="fp32"),
    ]
    if case.topk_ids.shape[1] > 2:  # two addends round once, however they are added
        wrong += [replace(contract, combine="fp32"), replace(contract, combine_order="slot")]
    for other in wrong:
        assert agreement(eager, fused_experts(**case.kwargs, spec=SPEC, numerics=other)) < AGREEMENT, other


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "clamp before", "clamp after", "relu2 without up"])
def test_other_activations_agree_bit_for_bit_too(name: str) -> None:
    case = drawn((32, 4, 128, 64, 2), "bf16", SPECS[name])
    eager = torch_eager(case, SPECS[name], "bf16")
    contract = all_stored("bf16")
    if name == "relu2 without up":  # relu is stored, then squared: the same bits as one store
        contract = replace(contract, act="fp32")
    assert agreement(eager, fused_experts(**case.kwargs, spec=SPECS[name], numerics=contract)) >= AGREEMENT


def test_pure_mathematics_is_the_contract_that_keeps_everything() -> None:
    case = drawn((9, 3, 16, 8, 2), "bf16")
    kept = fused_experts(**case.kwargs, spec=SPEC, numerics=Numerics(out="fp32"))
    np.testing.assert_array_equal(kept, fused_experts(**case.kwargs, spec=SPEC))
    stored = fused_experts(**case.kwargs, spec=SPEC, numerics=Numerics())
    np.testing.assert_array_equal(stored, round_to(kept, "bf16"))
    named = fused_experts(**case.kwargs, spec=SPEC, numerics=Numerics(), dtype="fp16")
    np.testing.assert_array_equal(named, round_to(kept, "fp16"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sigma_of_an_eager_loop(shape: tuple[int, ...], dtype: str) -> None:
    case = drawn(shape, dtype)
    value, sigma = estimate(**case.kwargs, spec=SPEC, numerics=all_stored(dtype))
    np.testing.assert_array_equal(value, fused_experts(**case.kwargs, spec=SPEC))
    assert_calibrated((torch_eager(case, SPEC, dtype) - value) / sigma, CALIBRATED_RMS)


@pytest.mark.parametrize("name", SPECS)
def test_sigma_of_every_activation(name: str) -> None:
    spec = SPECS[name]
    case = drawn((32, 4, 128, 64, 2), "bf16", spec)
    value, sigma = estimate(**case.kwargs, spec=spec, numerics=all_stored("bf16"))
    assert_calibrated((torch_eager(case, spec, "bf16") - value) / sigma, CALIBRATED_RMS)


@pytest.mark.parametrize("shape", SHAPES)
def test_sigma_of_fp32_torch(shape: tuple[int, ...]) -> None:
    case = drawn(shape, "fp32")
    value, sigma = estimate(**case.kwargs, spec=SPEC)
    assert_calibrated((torch_eager(case, SPEC, "fp32") - value) / sigma, BLOCKED_RMS)


def test_sigma_of_fp32_sums_added_one_after_the_other() -> None:
    case = drawn((16, 2, 256, 128, 2), "fp32")
    value, sigma = estimate(**case.kwargs, spec=SPEC)
    out = np.zeros(value.shape, dtype=np.float32)
    for t, s in np.ndindex(case.topk_ids.shape):
        e = case.topk_ids[t, s]
        pre = np.add.accumulate(case.w13[e] * case.hidden_states[t], axis=1, dtype=np.float32)[:, -1]
        g, u = np.split(pre, 2)
        h = g / (np.float32(1.0) + np.exp(-g)) * u
        out[t] += case.topk_weights[t, s] * np.add.accumulate(case.w2[e] * h, axis=1, dtype=np.float32)[:, -1]
    assert_calibrated((to_float64(out) - value) / sigma, CALIBRATED_RMS)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="fp32 until the output"),
        pytest.param({"gate_up": "bf16", "act_times_up": "bf16"}, id="products stored, act kept"),
        pytest.param({"act_times_up": "bf16", "weighted": "bf16"}, id="weighted stored, per expert kept"),
        pytest.param({"topk_weights": "bf16"}, id="low routing weights only"),
        pytest.param({"combine": "bf16", "combine_order": "slot"}, id="low sums in slot order only"),
    ],
)
def test_sigma_is_the_spread_of_the_contract_s_own_reference(changes: dict[str, Any]) -> None:
    case = drawn((64, 4, 64, 48, 4), "bf16")
    contract = Numerics(**changes)
    value, sigma = estimate(**case.kwargs, spec=SPEC, numerics=contract)
    assert_calibrated((fused_experts(**case.kwargs, spec=SPEC, numerics=contract) - value) / sigma, CALIBRATED_RMS)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"topk_weights": "bf16", "out": "fp32"}, id="low weights"),
        pytest.param({"weighted": "bf16", "out": "fp32"}, id="low weighted input"),
        pytest.param({"topk_weights": "bf16", "weighted": "bf16", "act_times_up": "bf16"}, id="all of it"),
    ],
)
def test_sigma_of_weights_on_the_input(changes: dict[str, Any]) -> None:
    spec = ExpertSpec(weight_on_input=True)
    case = drawn((256, 4, 64, 48, 1), "bf16", spec)
    case.topk_weights[:] = np.random.default_rng(1).random((256, 1)) + 0.5
    contract = Numerics(**changes)
    value, sigma = estimate(**case.kwargs, spec=spec, numerics=contract)
    out = fused_experts(**case.kwargs, spec=spec, numerics=contract)
    assert_calibrated((out - value) / sigma, CALIBRATED_RMS)


def test_a_weight_s_variance_on_the_input_arrives_times_the_squared_slope() -> None:
    spec = ExpertSpec(weight_on_input=True)
    case = drawn((12, 2, 16, 8, 1), "fp32", spec)._replace(topk_weights=np.linspace(0.1, 0.6, 12)[:, None])
    values = [
        fused_experts(**case._replace(topk_weights=case.topk_weights + step).kwargs, spec=spec)
        for step in (DIFFERENCE_STEP, -DIFFERENCE_STEP)
    ]
    slope = (values[0] - values[1]) / (2.0 * DIFFERENCE_STEP)
    _, exact = estimate(**case.kwargs, spec=spec)
    uncertain = exactly(case.topk_weights, flips=False)._replace(dense=np.ones((12, 1)))
    _, sigma = estimate(**case.kwargs, spec=spec, weights=uncertain)
    assert np.abs(np.sqrt(sigma**2 - exact**2) - np.abs(slope)).max() <= SLOPE_BOUND


def test_sigma_is_zero_only_where_nothing_is_added() -> None:
    case = drawn((9, 3, 16, 8, 2), "bf16")
    case.topk_ids[4] = -1
    value, sigma = estimate(**case.kwargs, spec=SPEC)
    np.testing.assert_array_equal(value[4], 0.0)
    np.testing.assert_array_equal(sigma[4], 0.0)
    others = np.arange(9) != 4
    assert (sigma[others] >= U32 * np.abs(value[others]) / 4.0).all()


def test_overflow_of_a_store_is_infinite() -> None:
    case = drawn((4, 2, 16, 8, 1), "fp16")
    case.w2[:] = np.float16(60000.0)
    out = fused_experts(**case.kwargs, spec=SPEC, numerics=Numerics())
    assert np.isinf(out).any()
