"""moe_layer: scaling placements, shared, fused and zero experts, in exact numbers and against torch float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # its name everywhere

from moecheck.formats import Float64, round_to, store, to_float64
from moecheck.numerics import Numerics
from moecheck.references.fused_experts import fused_experts
from moecheck.references.moe_layer import estimate, moe_layer
from moecheck.references.topk_routing import topk_routing
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec
from tests.bounds import AGREEMENT, BLOCKED_RMS, CALIBRATED_RMS, U64, expert_products_bound, z_limit
from tests.references.drawn import as_torch, draw, magnitude, torch_eager, torch_token_loop

TOKENS, EXPERTS, HIDDEN, INTERMEDIATE, TOP_K = 14, 6, 32, 16, 3
SIGMOID = RoutingSpec(top_k=TOP_K, scoring="sigmoid", renormalize=True, routed_scaling_factor=2.5)


def layer_arrays(spec: MoESpec, *, dtype: str = "fp32", extra: int = 0, tokens: int = TOKENS) -> dict[str, Any]:
    """Arrays of a layer with EXPERTS real experts, `extra` fused shared ones, and shared weights of width I."""
    case = draw(
        tokens=tokens,
        experts=EXPERTS + extra,
        hidden=HIDDEN,
        intermediate=INTERMEDIATE,
        top_k=TOP_K,
        spec=spec.experts,
        dtype=dtype,
    )
    shared = draw(
        tokens=1, experts=1, hidden=HIDDEN, intermediate=INTERMEDIATE, top_k=1, spec=spec.experts, dtype=dtype, seed=9
    )
    rng = np.random.default_rng(7)
    arrays: dict[str, Any] = {
        "hidden_states": case.hidden_states,
        "router_logits": rng.standard_normal((tokens, EXPERTS + spec.routing.num_zero_experts)).astype(np.float32),
        "w13": case.w13,
        "w2": case.w2,
    }
    if spec.shared_experts != "none":
        arrays |= {"shared_w13": shared.w13[0], "shared_w2": shared.w2[0]}
    if spec.shared_experts == "gated":
        arrays["shared_gate"] = store(rng.standard_normal(HIDDEN) / np.sqrt(HIDDEN), dtype)
    return arrays


def torch_layer(arrays: dict[str, Any], spec: MoESpec) -> tuple[Float64, Float64]:
    """The sum r * routed + shared in torch float64, token by token, and the magnitude that bounds its errors."""
    weights, ids = topk_routing(
        router_logits=arrays["router_logits"], spec=replace(spec.routing, routed_scaling_factor=1.0)
    )
    case = draw(tokens=1, experts=1, hidden=1, intermediate=1, top_k=1, spec=spec.experts)._replace(
        hidden_states=arrays["hidden_states"], w13=arrays["w13"], w2=arrays["w2"], topk_weights=weights, topk_ids=ids
    )
    r = spec.routing.routed_scaling_factor
    out, size = r * torch_token_loop(case, spec.experts), r * magnitude(case, spec.experts)
    if spec.shared_experts != "none":
        tokens = len(weights)
        alone = case._replace(
            w13=arrays["shared_w13"][None],
            w2=arrays["shared_w2"][None],
            topk_weights=np.ones((tokens, 1)),
            topk_ids=np.zeros((tokens, 1), dtype=np.int32),
        )
        gate = np.ones((tokens, 1))
        if spec.shared_experts == "gated":
            d = torch.float64
            gate = torch.sigmoid(as_torch(arrays["hidden_states"], d) @ as_torch(arrays["shared_gate"], d)).numpy()[
                :, None
            ]
        out, size = out + gate * torch_token_loop(alone, spec.experts), size + magnitude(alone, spec.experts)
    return out, size


def assert_float64_close(got: Float64, expected: Float64, size: Float64) -> None:
    bound = expert_products_bound(
        magnitude=size, hidden_size=2 * HIDDEN, intermediate_size=2 * INTERMEDIATE, top_k=TOP_K + 4, unit=U64
    )
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= bound).all()


@pytest.mark.parametrize("placement", ["topk_weights", "routed_output", "sum"])
@pytest.mark.parametrize("shared", ["none", "ungated", "gated"])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_the_result_is_r_routed_plus_shared_wherever_r_is(placement: Any, shared: Any, scoring: Any) -> None:
    routing = replace(SIGMOID, scaling_placement=placement, scoring=scoring)
    spec = MoESpec(routing=routing, shared_experts=shared)
    arrays = layer_arrays(spec)
    expected, size = torch_layer(arrays, spec)
    assert_float64_close(moe_layer(**arrays, spec=spec), expected, size)
    assert_float64_close(estimate(**arrays, spec=spec).value, expected, size)


@pytest.mark.parametrize("placement", ["topk_weights", "routed_output", "sum"])
def test_a_fused_shared_expert_is_a_shared_expert(placement: Any) -> None:
    routing = replace(SIGMOID, scaling_placement=placement)
    apart = MoESpec(routing=routing, shared_experts="ungated")
    arrays = layer_arrays(apart)
    fused = MoESpec(routing=replace(routing, num_fused_shared_experts=1))
    stacked = {name: arrays.pop(f"shared_{name}")[None] for name in ("w13", "w2")}
    joined = arrays | {name: np.concatenate([arrays[name], stacked[name]]) for name in stacked}
    expected, size = torch_layer({**arrays, **{f"shared_{n}": a[0] for n, a in stacked.items()}}, apart)
    assert_float64_close(moe_layer(**joined, spec=fused), expected, size)


@pytest.mark.parametrize("fused", [0, 1])
@pytest.mark.parametrize("placement", ["topk_weights", "routed_output"])
def test_zero_experts_pass_the_token_through(fused: int, placement: Any) -> None:
    routing = replace(SIGMOID, scaling_placement=placement, num_zero_experts=4, num_fused_shared_experts=fused)
    spec = MoESpec(routing=routing)
    arrays = layer_arrays(spec, extra=fused)

    weights, ids = topk_routing(router_logits=arrays["router_logits"], spec=routing)
    zero = (ids >= EXPERTS) & (ids < EXPERTS + 4)
    assert zero.any()
    assert not zero.all()
    x = to_float64(arrays["hidden_states"])
    real = np.where(zero, -1, np.where(ids >= EXPERTS + 4, ids - 4, ids))
    call = {"w13": arrays["w13"], "w2": arrays["w2"], "topk_weights": weights, "topk_ids": real, "spec": spec.experts}
    routed = fused_experts(hidden_states=arrays["hidden_states"], **call)
    r = 1.0 if placement == "topk_weights" else 2.5
    expected = r * (routed + np.where(zero, weights, 0.0).sum(axis=1, keepdims=True) * x)
    case = draw(tokens=1, experts=1, hidden=1, intermediate=1, top_k=1, spec=spec.experts)._replace(
        hidden_states=arrays["hidden_states"], w13=arrays["w13"], w2=arrays["w2"], topk_weights=weights, topk_ids=real
    )
    size = r * (magnitude(case, spec.experts) + np.abs(weights).sum(axis=1, keepdims=True) * np.abs(x))
    assert_float64_close(moe_layer(**arrays, spec=spec), expected, size)


def test_only_zero_experts_give_the_token_itself() -> None:
    spec = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True, num_zero_experts=2))
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    out = moe_layer(
        hidden_states=x,
        router_logits=np.array([[0.0, 9.0, 9.0], [0.0, 9.0, 9.0]], dtype=np.float32),
        w13=np.full((1, 4, 3), np.nan),
        w2=np.full((1, 3, 2), np.nan),
        spec=spec,
    )
    np.testing.assert_array_equal(out, x)


def test_given_weights_and_ids_replace_the_routing() -> None:
    spec = MoESpec(routing=SIGMOID)
    arrays = layer_arrays(spec)
    ids = np.tile(np.array([[4, -1, 0]], dtype=np.int32), (TOKENS, 1))
    weights = np.tile(np.array([[0.5, 9.0, 2.0]], dtype=np.float32), (TOKENS, 1))
    call = {name: arrays[name] for name in ("hidden_states", "w13", "w2")}
    expected = fused_experts(**call, topk_weights=weights, topk_ids=ids, spec=spec.experts)
    np.testing.assert_array_equal(moe_layer(**arrays, spec=spec, topk=(weights, ids)), expected)


def test_missing_shared_weights_are_named() -> None:
    arrays = layer_arrays(MoESpec(routing=SIGMOID))
    with pytest.raises(ValueError, match="shared_w13"):
        moe_layer(**arrays, spec=MoESpec(routing=SIGMOID, shared_experts="ungated"))


def test_a_sum_factor_and_its_own_shared_experts_in_whole_numbers() -> None:
    """Of x = 3 the routed expert makes 3^2, the shared one 3^2 times its up of 6; half of their sum is left."""
    one = np.ones((1, 1), dtype=np.float32)
    spec = MoESpec(
        routing=RoutingSpec(top_k=1, renormalize=True),
        experts=ExpertSpec(activation="relu2", gated=False),
        shared_experts="ungated",
        shared_spec=ExpertSpec(activation="relu2"),
        sum_factor=0.5,
    )
    arrays: dict[str, Any] = {
        "hidden_states": np.array([[3.0]], dtype=np.float32),
        "router_logits": one,
        "w13": one[None],
        "w2": one[None],
        "shared_w13": np.array([[1.0], [2.0]], dtype=np.float32),  # gate 3, up 6
        "shared_w2": one,
    }
    assert moe_layer(**arrays, spec=spec).tolist() == [[0.5 * (9.0 + 9.0 * 6.0)]]
    assert estimate(**arrays, spec=spec).value.tolist() == [[31.5]]


LATENT = 24


def latent_arrays(dtype: str, tokens: int) -> tuple[dict[str, Any], MoESpec]:
    """A layer whose experts work on LATENT columns, HIDDEN wide outside."""
    spec = MoESpec(routing=SIGMOID, shared_experts="ungated", latent_experts=True)
    arrays = layer_arrays(replace(spec, latent_experts=False), dtype=dtype, tokens=tokens)
    narrow = draw(
        tokens=1,
        experts=EXPERTS,
        hidden=LATENT,
        intermediate=INTERMEDIATE,
        top_k=1,
        spec=spec.experts,
        dtype=dtype,
        seed=4,
    )
    rng = np.random.default_rng(11)
    arrays |= {
        "w13": narrow.w13,
        "w2": narrow.w2,
        "latent_down": store(rng.standard_normal((LATENT, HIDDEN)) / np.sqrt(HIDDEN), dtype),
        "latent_up": store(rng.standard_normal((HIDDEN, LATENT)) / np.sqrt(LATENT), dtype),
    }
    return arrays, spec


def torch_latent_layer(arrays: dict[str, Any], spec: MoESpec, dtype: str) -> Float64:
    """down, experts, up and the shared expert in torch, every stage's output a tensor of `dtype`."""
    d = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    x, down, up = (as_torch(arrays[n], d) for n in ("hidden_states", "latent_down", "latent_up"))
    latent = F.linear(x, down)
    weights, ids = topk_routing(router_logits=arrays["router_logits"], spec=spec.routing)
    case = draw(tokens=1, experts=1, hidden=1, intermediate=1, top_k=1, spec=spec.experts)._replace(
        hidden_states=latent.double().numpy(),
        w13=arrays["w13"],
        w2=arrays["w2"],
        topk_weights=weights,
        topk_ids=ids,
    )
    y = F.linear(as_torch(torch_eager(case, spec.experts, dtype), d), up)
    gate, wide = F.linear(x, as_torch(arrays["shared_w13"], d)).chunk(2, dim=-1)
    return (y + F.linear(F.silu(gate) * wide, as_torch(arrays["shared_w2"], d))).double().numpy()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sigma_of_latent_experts_in_torch(dtype: str) -> None:
    arrays, spec = latent_arrays(dtype, tokens=128)
    contract = STORED if dtype == "bf16" else None
    out = torch_latent_layer(arrays, spec, dtype)
    value, sigma = estimate(**arrays, spec=spec, numerics=contract)
    z = (out - value) / sigma
    limits = CALIBRATED_RMS if dtype == "bf16" else BLOCKED_RMS
    assert limits[0] <= np.sqrt(np.mean(z**2)) <= limits[1]
    assert np.abs(z).max() <= z_limit(z.size)
    if dtype == "bf16":
        assert np.mean(out == moe_layer(**arrays, spec=spec, numerics=STORED)) >= AGREEMENT


@pytest.mark.parametrize("flips", [False, True])
def test_what_a_row_of_a_latent_layer_shares_adds_up(flips: bool) -> None:
    """The variance of one column is that of the sum with weight 1 there: sources and independent parts together."""
    arrays, spec = latent_arrays("bf16", tokens=20)
    errors = estimate(**arrays, spec=spec, numerics=STORED, flips=flips)
    c = np.zeros(errors.value.shape)
    c[:, 3] = 1.0
    along, _ = errors.projected(c)
    own = errors.estimate.variance[:, 3]
    # sources go through products of matrices, the column's variance through their squares: equal on average
    assert CALIBRATED_RMS[0] <= np.sqrt(np.mean(along / own)) <= CALIBRATED_RMS[1]


def low_precision_layer(arrays: dict[str, Any], spec: MoESpec, dtype: str) -> Float64:
    """A layer as modelling code runs it in torch: every stage's output is a tensor of `dtype`."""
    weights, ids = topk_routing(router_logits=arrays["router_logits"], spec=spec.routing)
    case = draw(tokens=1, experts=1, hidden=1, intermediate=1, top_k=1, spec=spec.experts)._replace(
        hidden_states=arrays["hidden_states"], w13=arrays["w13"], w2=arrays["w2"], topk_weights=weights, topk_ids=ids
    )
    d = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    y = as_torch(torch_eager(case, spec.experts, dtype), d)
    if spec.routing.scaling_placement != "topk_weights":
        y = y * spec.routing.routed_scaling_factor
    if spec.shared_experts != "none":
        x, w13, w2 = (as_torch(arrays[n], d) for n in ("hidden_states", "shared_w13", "shared_w2"))
        gate, up = F.linear(x, w13).chunk(2, dim=-1)
        shared = F.linear(F.silu(gate) * up, w2)
        if spec.shared_experts == "gated":
            shared = torch.sigmoid(F.linear(x, as_torch(arrays["shared_gate"], d)[None])) * shared
        y = y + shared
    return y.double().numpy()


STORED = Numerics(
    topk_weights="input",
    gate_up="input",
    act="input",
    act_times_up="input",
    per_expert="input",
    weighted="input",
    combine="input",
    combine_order="expert",
)


@pytest.mark.parametrize("placement", ["topk_weights", "routed_output"])
@pytest.mark.parametrize("shared", ["none", "ungated", "gated"])
def test_rounding_at_every_stage_is_that_of_bf16_torch(placement: Any, shared: Any) -> None:
    spec = MoESpec(routing=replace(SIGMOID, scaling_placement=placement), shared_experts=shared)
    arrays = layer_arrays(spec, dtype="bf16", tokens=128)
    out = low_precision_layer(arrays, spec, "bf16")
    reference = moe_layer(**arrays, spec=spec, numerics=STORED)
    assert np.mean(out == reference) >= AGREEMENT
    value, sigma = estimate(**arrays, spec=spec, numerics=STORED)
    z = (out - value) / sigma
    assert CALIBRATED_RMS[0] <= np.sqrt(np.mean(z**2)) <= CALIBRATED_RMS[1]
    assert np.abs(z).max() <= z_limit(z.size)


@pytest.mark.parametrize("shared", ["none", "ungated", "gated"])
def test_sigma_of_fp32_torch(shared: Any) -> None:
    spec = MoESpec(routing=SIGMOID, shared_experts=shared)
    arrays = layer_arrays(spec, tokens=128)
    value, sigma = estimate(**arrays, spec=spec)
    z = (low_precision_layer(arrays, spec, "fp32") - value) / sigma
    assert BLOCKED_RMS[0] <= np.sqrt(np.mean(z**2)) <= BLOCKED_RMS[1]
    assert np.abs(z).max() <= z_limit(z.size)


@pytest.mark.parametrize("zero", [0, 4])
def test_sigma_of_scores_stored_low(zero: int) -> None:
    routing = RoutingSpec(top_k=TOP_K, scoring="sigmoid", num_zero_experts=zero)
    spec = MoESpec(routing=routing)
    arrays = layer_arrays(spec, dtype="bf16", tokens=512)
    contract = Numerics(scores="bf16", out="fp32")
    value, sigma = estimate(**arrays, spec=spec, numerics=contract)
    weights, ids = topk_routing(router_logits=arrays["router_logits"], spec=routing)
    out = moe_layer(**arrays, spec=spec, topk=(round_to(weights, "bf16"), ids))
    z = (out - value) / sigma
    assert CALIBRATED_RMS[0] <= np.sqrt(np.mean(z**2)) <= CALIBRATED_RMS[1]
    assert np.abs(z).max() <= z_limit(z.size)
