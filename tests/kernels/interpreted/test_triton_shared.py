"""Shared experts as slots: they net exactly 1, on all ranks together, and routed experts exactly the factor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moecheck import ExpertSpec, MoESpec, RoutingSpec, Unsupported
from moecheck.formats import store, to_float64
from moecheck.kernels.triton import experts, moe_layer, routing
from moecheck.references.moe_layer import estimate
from moecheck.spec import SWIGLUOAI
from tests.bounds import largest_z
from tests.kernels.experts_case import declaration
from tests.kernels.routing_cases import NOAUX
from tests.kernels.torch_bridge import on_torch, to_numpy

T, E, H, I = 6, 8, 32, 16  # noqa: E741  # tokens, experts, hidden and intermediate size, as everywhere
PLACEMENTS = ("topk_weights", "routed_output", "sum")
# A factor whose inverse is exact, and weights that equal logits make exactly 1/2.
EXACT = RoutingSpec(top_k=2, renormalize=True, routed_scaling_factor=4.0)


def arrays(spec: MoESpec, *, shared: int = I, dtype: str = "bf16") -> dict[str, Any]:
    """Inputs of a layer as NumPy arrays; the fused shared experts are the last of E'."""
    rng = np.random.default_rng(3)
    stored = E + spec.routing.num_fused_shared_experts
    drawn = {
        "hidden_states": rng.normal(size=(T, H)),
        "w13": rng.normal(size=(stored, 2 * I, H)) * 2 / np.sqrt(H),
        "w2": rng.normal(size=(stored, H, I)) / np.sqrt(I),
    }
    if spec.experts.w13_bias:
        drawn |= {"w13_bias": rng.normal(size=(stored, 2 * I)), "w2_bias": rng.normal(size=(stored, H))}
    if spec.shared_experts != "none":
        drawn |= {"shared_w13": rng.normal(size=(2 * shared, H)) / 4, "shared_w2": rng.normal(size=(H, shared)) / 4}
    if spec.shared_experts == "gated":
        drawn["shared_gate"] = rng.normal(size=H) / 4
    given: dict[str, Any] = {name: store(values, dtype) for name, values in drawn.items()}
    given["router_logits"] = np.array([rng.permutation(np.linspace(-3, 3, E)) for _ in range(T)], dtype=np.float32)
    if spec.routing.correction_bias != "none":
        given["correction_bias"] = rng.permutation(np.linspace(0.013, 0.29, E)).astype(np.float32)
    return given


def alone(given: dict[str, Any], w13: torch.Tensor, w2: torch.Tensor, spec: ExpertSpec) -> torch.Tensor:
    """The output of one expert on every token, weight 1."""
    return experts.fused_gate_up(
        hidden_states=given["hidden_states"], w13=w13[None], w2=w2[None], topk_weights=torch.ones(T, 1),
        topk_ids=torch.zeros(T, 1, dtype=torch.int32), spec=spec,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_appended_expert_nets_exactly_one(placement: Any, layout: Any) -> None:
    route = replace(NOAUX, routed_scaling_factor=2.5, scaling_placement=placement)
    spec = MoESpec(routing=route, experts=ExpertSpec(gate_up_layout=layout), shared_experts="ungated")
    given = on_torch(arrays(spec))
    given["w2"].zero_()
    out = moe_layer.appended_shared(**given, spec=spec)
    assert torch.equal(out, alone(given, given["shared_w13"], given["shared_w2"], spec.experts))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_fused_slots_net_exactly_one_each(placement: Any) -> None:
    spec = MoESpec(routing=replace(EXACT, num_fused_shared_experts=2, scaling_placement=placement))
    given = on_torch(arrays(spec))
    given["w2"][:E] = 0
    expected = alone(given, given["w13"][E], given["w2"][E], spec.experts)
    given["w2"][E + 1] = 0  # the other slot alone, in its turn
    assert torch.equal(moe_layer.fused_shared(**given, spec=spec), expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kernel", [moe_layer.fused_shared, moe_layer.appended_shared], ids=["fused", "appended"])
def test_the_routed_experts_add_up_to_exactly_the_factor(kernel: Any, placement: Any) -> None:
    fused = kernel is moe_layer.fused_shared
    route = replace(EXACT, scaling_placement=placement, num_fused_shared_experts=int(fused))
    spec = MoESpec(routing=route, shared_experts="none" if fused else "ungated")
    given = on_torch(arrays(spec))
    for name in ("w13", "w2"):  # every routed expert is the first, so that only the sum of the weights counts
        given[name][1:E] = given[name][:1].clone()
    given["w2" if fused else "shared_w2"][E if fused else slice(None)] = 0
    given["router_logits"] = torch.zeros(T, E)  # weights of exactly 1/2
    expected = 4.0 * alone(given, given["w13"][0], given["w2"][0], spec.experts).float()
    assert torch.equal(kernel(**given, spec=spec).float(), expected)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_ids_go_in_turn_and_weights_add_up_to_one_over_ranks(placement: Any, ranks: int) -> None:
    spec = replace(EXACT, num_fused_shared_experts=3, scaling_placement=placement, shared_slot_ranks=ranks)
    weights, ids = routing.topk_routing(router_logits=torch.randn(5, E), spec=spec)
    assert ids[:, 2:].tolist() == [[E, E + 1, E + 2]] * 5
    after = 1.0 if placement == "topk_weights" else spec.routed_scaling_factor
    assert torch.equal(weights[:, 2:] * ranks * after, torch.ones(5, 3))


def test_ranks_add_up_to_the_layer() -> None:
    """Two ranks: each holds every other routed expert and the shared one, whose output counts once."""
    spec = MoESpec(routing=replace(NOAUX, num_fused_shared_experts=1, shared_slot_ranks=2))
    given, whole = arrays(spec, dtype="fp32"), replace(spec, routing=replace(spec.routing, shared_slot_ranks=1))
    tensors = on_torch(given)
    weights, ids = routing.topk_routing(
        router_logits=tensors["router_logits"], correction_bias=tensors["correction_bias"], spec=spec.routing
    )
    total = torch.zeros(T, H)
    for rank in range(2):
        here = [*range(rank, E, 2), E]
        expert_map = torch.full((E + 1,), -1, dtype=torch.int32)
        expert_map[here] = torch.arange(len(here), dtype=torch.int32)
        total += experts.fused_gate_up(
            hidden_states=tensors["hidden_states"], w13=tensors["w13"][here], w2=tensors["w2"][here],
            topk_weights=weights, topk_ids=ids, expert_map=expert_map, spec=spec.experts,
        )  # fmt: skip
    value, sigma = estimate(**given, spec=whole, numerics=declaration(moe_layer.fused_shared).numerics, dtype="fp32")
    assert np.all(np.abs(to_float64(to_numpy(total)) - value) <= 2 * largest_z(total.numel()) * sigma)


@pytest.mark.parametrize("shared", [I, 3 * I, I + 4, I - 4])
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("kind", ["ungated", "gated"])
def test_shared_experts_of_any_width_agree_with_the_reference(kind: Any, layout: Any, shared: int) -> None:
    route = replace(NOAUX, scaling_placement="routed_output")
    spec = MoESpec(routing=route, experts=ExpertSpec(gate_up_layout=layout), shared_experts=kind, sum_factor=0.5)
    given = arrays(spec, shared=shared, dtype="fp32")
    out = to_numpy(moe_layer.appended_shared(**on_torch(given), spec=spec))
    value, sigma = estimate(**given, spec=spec, numerics=declaration(moe_layer.fused_shared).numerics, dtype="fp32")
    assert np.all(np.abs(to_float64(out) - value) <= largest_z(out.size) * sigma)


def test_biases_are_those_of_the_routed_experts() -> None:
    spec = MoESpec(routing=NOAUX, experts=SWIGLUOAI, shared_experts="ungated")
    given = arrays(spec, dtype="fp32")
    out = to_numpy(moe_layer.appended_shared(**on_torch(given), spec=spec))
    value, sigma = estimate(**given, spec=spec, numerics=declaration(moe_layer.fused_shared).numerics, dtype="fp32")
    assert np.all(np.abs(to_float64(out) - value) <= largest_z(out.size) * sigma)


@pytest.mark.parametrize(
    ("kernel", "spec", "reason"),
    [
        (moe_layer.fused_shared, MoESpec(shared_experts="ungated"), "among the routed ones"),
        (moe_layer.appended_shared, MoESpec(), "beside the routed ones"),
        (
            moe_layer.appended_shared,
            MoESpec(shared_experts="ungated", shared_spec=ExpertSpec(activation="gelu_tanh")),
            "another kind",
        ),
        (
            moe_layer.fused_shared,
            MoESpec(routing=RoutingSpec(top_k=1), experts=ExpertSpec(weight_on_input=True)),
            "not their inputs",
        ),
        (moe_layer.fused_shared, MoESpec(routing=RoutingSpec(num_zero_experts=1)), "identity"),
    ],
    ids=["shared beside", "nothing to append", "another kind", "weights on inputs", "identity experts"],
)
def test_what_the_layers_lack_is_declined(kernel: Any, spec: MoESpec, reason: str) -> None:
    given = on_torch(arrays(replace(spec, shared_experts="ungated", shared_spec=None)))
    if kernel is moe_layer.fused_shared:
        given = {name: value for name, value in given.items() if not name.startswith("shared_")}
    with pytest.raises(Unsupported, match=reason):
        kernel(**given, spec=spec)
