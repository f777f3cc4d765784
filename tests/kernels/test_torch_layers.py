"""Whole layers in PyTorch and transformers' blocks against the reference under each kernel's declared contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecheck import ExpertSpec, MoESpec, RoutingSpec, Unsupported
from moecheck.formats import AnyArray, store, to_float64
from moecheck.kernels.third_party import transformers_layers as blocks
from moecheck.kernels.torch.moe_layer import moe_layer
from moecheck.references.moe_layer import estimate
from moecheck.references.moe_layer import moe_layer as reference
from moecheck.spec import SWIGLUOAI
from tests.bounds import AGREEMENT, largest_z
from tests.kernels.experts_case import Kernel, declaration, name_of
from tests.kernels.routing_cases import NOAUX, SPECS
from tests.kernels.torch_bridge import on_torch, to_numpy

SOFTMAX = RoutingSpec(top_k=4, renormalize=True)
DEEPSEEK = MoESpec(routing=NOAUX, shared_experts="ungated")
LIBRARY = (
    (blocks.mixtral, MoESpec(routing=SOFTMAX)),
    (blocks.qwen3_moe, MoESpec(routing=SOFTMAX)),
    (blocks.olmoe, MoESpec(routing=RoutingSpec(top_k=4))),
    (blocks.qwen2_moe, MoESpec(routing=RoutingSpec(top_k=4), shared_experts="gated")),
    (blocks.deepseek_v2, MoESpec(routing=SPECS["group_limited_greedy"], shared_experts="ungated")),
    (blocks.deepseek_v3, DEEPSEEK),
    (blocks.glm4_moe, DEEPSEEK),
)
OURS = {
    "softmax": MoESpec(routing=SOFTMAX),
    "DeepSeek-V3": DEEPSEEK,
    "factor on the routed output": replace(DEEPSEEK, routing=replace(NOAUX, scaling_placement="routed_output")),
    "factor on the sum": replace(DEEPSEEK, routing=replace(NOAUX, scaling_placement="sum")),
    "gated shared expert": MoESpec(routing=SOFTMAX, shared_experts="gated"),
    "fused shared experts": MoESpec(routing=replace(NOAUX, num_fused_shared_experts=2)),
    "identity experts": MoESpec(
        routing=RoutingSpec(top_k=4, num_zero_experts=8, correction_bias="select", routed_scaling_factor=6.0)
    ),
    "identity and fused shared experts": MoESpec(
        routing=RoutingSpec(top_k=4, num_zero_experts=8, num_fused_shared_experts=1)
    ),
    "GPT-OSS": MoESpec(routing=RoutingSpec(top_k=4, softmax_over_selected=True), experts=SWIGLUOAI),
    "Llama-4": MoESpec(
        routing=RoutingSpec(top_k=1, scoring="sigmoid"),
        experts=ExpertSpec(weight_on_input=True),
        shared_experts="ungated",
    ),
}
EXPERTS = 16


def inputs(spec: MoESpec, *, dtype: str, tokens: int, hidden: int = 64, intermediate: int = 48) -> dict[str, Any]:
    """NumPy arrays by argument name; routing weights and outputs of order 1, gaps between logits far above rounding."""
    rng = np.random.default_rng(7)
    rows = 2 if spec.experts.gated else 1
    stored = EXPERTS - spec.routing.num_zero_experts + spec.routing.num_fused_shared_experts
    arrays = {
        "hidden_states": rng.normal(size=(tokens, hidden)),
        "w13": rng.normal(size=(stored, rows * intermediate, hidden)) * 2 / np.sqrt(hidden),
        "w2": rng.normal(size=(stored, hidden, intermediate)) / np.sqrt(intermediate),
    }
    if spec.experts.w13_bias:
        arrays["w13_bias"] = rng.normal(size=(stored, rows * intermediate))
        arrays["w2_bias"] = rng.normal(size=(stored, hidden))
    if spec.shared_experts != "none":
        arrays["shared_w13"] = rng.normal(size=(rows * intermediate * 2, hidden)) * 2 / np.sqrt(hidden)
        arrays["shared_w2"] = rng.normal(size=(hidden, intermediate * 2)) / np.sqrt(intermediate * 2)
    if spec.shared_experts == "gated":
        arrays["shared_gate"] = rng.normal(size=hidden) / np.sqrt(hidden)
    given: dict[str, AnyArray] = {name: store(values, dtype) for name, values in arrays.items()}
    levels = np.linspace(-3, 3, EXPERTS, dtype=np.float32)
    given["router_logits"] = np.array([rng.permutation(levels) for _ in range(tokens)]).reshape(tokens, EXPERTS)
    if spec.routing.correction_bias != "none":
        given["correction_bias"] = rng.permutation(np.linspace(0.013, 0.29, EXPERTS)).astype(np.float32)
    return given


def check(kernel: Kernel, spec: MoESpec, arrays: dict[str, Any], *, dtype: str) -> None:
    out = to_numpy(kernel(**on_torch(arrays), spec=spec))
    assert out.dtype == arrays["hidden_states"].dtype
    assert out.shape == arrays["hidden_states"].shape
    value, sigma = estimate(**arrays, spec=spec, numerics=declaration(kernel).numerics, dtype=dtype)
    assert np.all(np.abs(to_float64(out) - value) <= largest_z(max(1, out.size)) * sigma)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("tokens", [0, 1, 24])
@pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in OURS.items()])
def test_torch_layer_agrees_with_the_reference(spec: MoESpec, tokens: int, dtype: str) -> None:
    check(moe_layer, spec, inputs(spec, dtype=dtype, tokens=tokens), dtype=dtype)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("sizes", [(0, 64, 48), (24, 64, 48), (7, 90, 44)], ids=str)
@pytest.mark.parametrize(("kernel", "spec"), LIBRARY, ids=name_of)
def test_library_blocks_agree_with_the_reference(
    kernel: Kernel, spec: MoESpec, sizes: tuple[int, int, int], dtype: str
) -> None:
    arrays = inputs(spec, dtype=dtype, tokens=sizes[0], hidden=sizes[1], intermediate=sizes[2])
    check(kernel, spec, arrays, dtype=dtype)


@pytest.mark.parametrize(("kernel", "spec"), [*LIBRARY, *((moe_layer, spec) for spec in OURS.values())], ids=name_of)
def test_bf16_outputs_are_the_declared_contract_bit_for_bit(kernel: Kernel, spec: MoESpec) -> None:
    arrays = inputs(spec, dtype="bf16", tokens=32, hidden=256, intermediate=128)
    out = to_numpy(kernel(**on_torch(arrays), spec=spec))
    expected = reference(**arrays, spec=spec, numerics=declaration(kernel).numerics, dtype="bf16")
    assert np.mean(to_float64(out) == expected) >= AGREEMENT


def test_a_block_without_shared_experts_declines_a_spec_with_them() -> None:
    spec = MoESpec(routing=SOFTMAX, shared_experts="ungated")
    arrays = inputs(spec, dtype="fp32", tokens=2)
    del arrays["shared_w13"], arrays["shared_w2"]
    with pytest.raises(Unsupported, match="shared_experts='none'"):
        blocks.mixtral(**on_torch(arrays), spec=spec)


@pytest.mark.parametrize("missing", ["shared_w2", "shared_gate"])
def test_a_missing_shared_expert_is_declined(missing: str) -> None:
    spec = MoESpec(shared_experts="gated")
    arrays = inputs(spec, dtype="fp32", tokens=2)
    del arrays[missing]
    with pytest.raises(Unsupported, match=missing):
        moe_layer(**on_torch(arrays), spec=spec)
