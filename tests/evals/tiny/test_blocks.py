"""Blocks of a model against the NumPy references: the reference path, kernels in it, and every fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs moecheck[e2e]: torch")

import torch

import moecheck
from moecheck.cases import Case
from moecheck.errors import UsageError
from moecheck.evals.tiny.architectures import ARCHITECTURES
from moecheck.evals.tiny.block import ReferenceBlock
from moecheck.evals.tiny.config import TinyConfig
from moecheck.evals.tiny.fault_block import FaultBlock
from moecheck.evals.tiny.faults import SELF_TEST, Fault, fault_of, faults, self_test_faults
from moecheck.evals.tiny.find_kernel import find_kernel
from moecheck.evals.tiny.kernel_block import KernelBlock, check_fits
from moecheck.evals.tiny.routing import router_logits
from moecheck.evals.tiny.weights import MoEWeights, assembled, random_tensors
from moecheck.formats import store
from moecheck.mutants.call import Call, predict
from moecheck.numerics import INPUT, Numerics
from moecheck.quantized_inputs import dequantised
from moecheck.runner.arrays import to_numpy
from tests.bounds import largest_z
from tests.evals.random_models import small

TOKENS = 70
STORES = Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT)
CONFIGS = {name: small(name) for name in ARCHITECTURES}


def layer_of(config: TinyConfig) -> MoEWeights:
    tensors = {name: tensor.float() for name, tensor in random_tensors(config, 4).items()}
    mlp = assembled(tensors, config).layers[config.moe_layers[-1]].mlp
    assert isinstance(mlp, MoEWeights)
    return mlp


LAYERS = {name: layer_of(config) for name, config in CONFIGS.items()}
HIDDEN = torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(2))


def call_of(name: str, dtype: str = "fp32") -> Call:
    """The layer's call as a reference gets it."""
    layer, config = LAYERS[name], CONFIGS[name]
    arrays: dict[str, Any] = {"hidden_states": HIDDEN, "w13": layer.w13, "w2": layer.w2}
    if layer.shared is not None:
        arrays |= {"shared_w13": layer.shared.w13, "shared_w2": layer.shared.w2}
    inputs = {key: store(tensor.double().numpy(), dtype) for key, tensor in arrays.items()}
    inputs["router_logits"] = router_logits(HIDDEN, layer.router).numpy()
    if layer.correction_bias is not None:
        inputs["correction_bias"] = layer.correction_bias.numpy()
    case: Case = config.case("moe_layer", num_tokens=TOKENS, dtype=dtype)
    return Call(case=case, inputs=inputs)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_reference_path_is_within_rounding_of_the_reference(name: str, precision: str) -> None:
    output = ReferenceBlock(LAYERS[name], CONFIGS[name], precision=precision)(HIDDEN).output
    expected = predict(call_of(name, precision), STORES, np.zeros(1), precision)
    z = np.abs(output.numpy() - expected.value) / expected.sigma
    assert z.max() <= largest_z(z.size)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_parts_add_up(name: str) -> None:
    out = ReferenceBlock(LAYERS[name], CONFIGS[name], precision="bf16")(HIDDEN)
    assert out.routed is not None
    total = out.routed if out.shared is None else (out.routed + out.shared).bfloat16().float()
    assert torch.equal(total, out.output)


def test_another_order_of_the_sum_is_not_the_same_bits_and_another_rounding_only() -> None:
    one, two = (
        ReferenceBlock(LAYERS["tiny-glm4-moe"], CONFIGS["tiny-glm4-moe"], precision="fp32", backwards=backwards)(HIDDEN)
        for backwards in (False, True)
    )
    assert not torch.equal(one.output, two.output)
    expected = predict(call_of("tiny-glm4-moe"), STORES, np.zeros(1), "fp32")
    z = np.abs(two.output.numpy() - expected.value) / expected.sigma
    assert z.max() <= largest_z(z.size)


KERNELS = ("torch/index_add", "torch/grouped_mm", "torch/moe_layer", "torch/topk_routing", "torch/packed_topk_routing")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_kernel_in_a_block_is_within_rounding_of_the_reference(name: str, kernel: str) -> None:
    function, declaration = find_kernel(kernel, None)
    block = KernelBlock(function, declaration, LAYERS[name], CONFIGS[name], precision="fp32")
    output = block(HIDDEN).output
    assert block.call.calls == 1
    stores = replace(STORES, topk_weights="bf16") if "packed" in kernel else STORES
    expected = predict(call_of(name), stores, np.zeros(1), "fp32")
    z = np.abs(output.numpy() - expected.value) / expected.sigma
    assert z.max() <= largest_z(z.size)


@pytest.mark.parametrize("kernel", ["torch/fp8_channel", "torch/fp8_block", "torch/fp8_block_ue8m0"])
def test_a_kernel_of_fp8_weights_gets_the_models_weights_quantised(kernel: str) -> None:
    """Its output is within rounding of the reference on what its codes stand for, nearer than to the plain one."""
    name = "tiny-qwen3-moe"
    layer, config = LAYERS[name], CONFIGS[name]
    function, declaration = find_kernel(kernel, None)
    check_fits(declaration, config, "fp8")
    block = KernelBlock(function, declaration, layer, config, precision="fp8")
    output = block(HIDDEN).output.numpy()
    constants = {key: to_numpy(value) for key, value in block.call.constants.items()}
    case = config.case("fused_experts", num_tokens=TOKENS, dtype="bf16")
    assert isinstance(block.call.spec, moecheck.ExpertSpec)
    of_codes = replace(case, spec=replace(case.spec, experts=block.call.spec))
    weights, ids, _ = block.reference.route(router_logits(HIDDEN, layer.router))
    slots = {"topk_weights": weights.numpy(), "topk_ids": ids.int().numpy()}
    given = {"hidden_states": store(HIDDEN.double().numpy(), "bf16"), **slots}
    plain = {key: store(value.double().numpy(), "bf16") for key, value in (("w13", layer.w13), ("w2", layer.w2))}
    z = {}
    for which, arrays in (("codes", dequantised(of_codes, {**given, **constants})), ("plain", {**given, **plain})):
        expected = predict(Call(case=case, inputs=arrays), declaration.numerics, np.zeros(1), "bf16")
        z[which] = np.abs(output - expected.value) / expected.sigma
    assert z["codes"].max() <= largest_z(output.size)
    assert np.sqrt(np.mean(z["codes"] ** 2)) < np.sqrt(np.mean(z["plain"] ** 2))  # the kernel's own error is one term


def test_a_kernel_gets_its_own_arrangement_of_the_weights() -> None:
    """Up first, transposed, hidden states wider than the model's: the output is the same."""
    layout = moecheck.WeightLayout(gate_up="up_first", transposed=True, hidden_multiple=48)

    def arranged(*, hidden_states: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any, spec: Any) -> Any:
        assert spec.gate_up_layout == "up_first"
        assert w13.shape == (8, 96, 64)
        assert hidden_states.shape == (TOKENS, 96)
        up, gate = torch.einsum("th,ehi->eti", hidden_states, w13).chunk(2, dim=-1)
        every = torch.einsum("eti,eih->teh", torch.nn.functional.silu(gate) * up, w2)
        chosen = every[torch.arange(TOKENS)[:, None], topk_ids.long()]
        return (chosen * topk_weights[..., None]).sum(dim=1)

    declared = moecheck.kernel("fused_experts", backend="torch", name="arranged", weight_layout=layout)(arranged)
    declaration = declared.__moecheck__  # type: ignore[attr-defined]  # the decorator sets it
    name = "tiny-qwen3-moe"
    output = KernelBlock(declared, declaration, LAYERS[name], CONFIGS[name], precision="fp32")(HIDDEN).output
    expected = predict(call_of(name), STORES, np.zeros(1), "fp32")
    z = np.abs(output.numpy() - expected.value) / expected.sigma
    assert z.max() <= largest_z(z.size)


def test_a_kernel_that_writes_into_its_input_leaves_the_model_as_it_was() -> None:
    function, declaration = find_kernel("torch/index_add", None)

    def clobbers(**arguments: Any) -> Any:
        out = function(**arguments)
        arguments["hidden_states"].zero_()
        return out

    block = KernelBlock(clobbers, declaration, LAYERS["tiny-glm4-moe"], CONFIGS["tiny-glm4-moe"], precision="fp32")
    kept = HIDDEN.clone()
    block(HIDDEN)
    assert torch.equal(kept, HIDDEN)


@pytest.mark.parametrize(
    ("kernel", "precision", "why"),
    [
        pytest.param("torch/permute", "fp32", "computes permute", id="an op that is no part of a layer"),
        pytest.param("torch/fp8_block", "fp32", "w13_scale", id="weights that the model does not have"),
        pytest.param("transformers/glm4_moe_block", "fp32", "other semantics", id="semantics of another model"),
        pytest.param("torch/index_add", "fp8", "takes no fp8_e4m3fn weights", id="no quantised weights"),
        pytest.param("torch/topk_routing", "fp8", "fp8 weights are of fused_experts", id="no weights at all"),
        pytest.param("torch/fp8_tensor", "fp8", "scales of their own", id="static scales"),
    ],
)
def test_a_kernel_that_does_not_fit_is_unsupported(kernel: str, precision: str, why: str) -> None:
    if kernel.startswith("transformers"):
        pytest.importorskip("transformers", reason="needs moecheck[e2e]: transformers")
    _, declaration = find_kernel(kernel, None)
    with pytest.raises(moecheck.Unsupported, match=why):
        check_fits(declaration, CONFIGS["tiny-glm4-moe"], precision)


ALL = [(name, fault) for name, config in CONFIGS.items() for fault in faults(config).values()]


@pytest.mark.parametrize(("name", "fault"), ALL, ids=[f"{name}: {fault.name}" for name, fault in ALL])
def test_a_fault_is_what_the_corpus_makes_of_the_call(name: str, fault: Fault) -> None:
    """Its output is the mutated reference's, up to rounding; where that equals the right one, it is no change."""
    config, call = CONFIGS[name], call_of(name)
    output = FaultBlock(fault, LAYERS[name], config, precision="fp32")(HIDDEN).output.numpy()
    right = predict(call, STORES, np.zeros(1), "fp32")
    with np.errstate(all="ignore"):
        expected = predict(fault.change(call), STORES, right.sigma, "fp32")
    unset = np.isnan(expected.value)
    assert np.array_equal(np.isnan(output), unset)
    # A factor 0 leaves nothing to round, and the guessed sigma of a bare value may be too small for values that grew.
    sigma = np.maximum(np.where(unset, 1.0, expected.sigma), right.sigma)
    z = np.where(unset, 0.0, np.abs(output - np.where(unset, output, expected.value)) / sigma)
    grown = np.abs(expected.value[~unset]).max() / np.abs(right.value).max() if (~unset).any() else 1.0
    assert z.max() <= largest_z(z.size) * max(1.0, grown)


def test_a_fault_without_meaning_in_a_call_is_the_reference_path() -> None:
    name = "tiny-glm4-moe"
    fault = fault_of("2_tokens_swapped", CONFIGS[name])
    block = FaultBlock(fault, LAYERS[name], CONFIGS[name], precision="bf16")
    plain = ReferenceBlock(LAYERS[name], CONFIGS[name], precision="bf16")
    assert torch.equal(block(HIDDEN[:1]).output, plain(HIDDEN[:1]).output)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_router_fault_shows_its_ids(precision: str) -> None:
    name = "tiny-glm4-moe"
    plain = ReferenceBlock(LAYERS[name], CONFIGS[name], precision=precision)(HIDDEN)
    fault = fault_of("groups_ignored", CONFIGS[name])
    found = FaultBlock(fault, LAYERS[name], CONFIGS[name], precision=precision)(HIDDEN)
    assert found.topk_ids is not None
    assert plain.topk_ids is not None
    assert found.topk_ids.shape == plain.topk_ids.shape
    assert not torch.equal(found.topk_ids.sort().values, plain.topk_ids.sort().values)


def test_the_self_test_has_faults_for_every_architecture() -> None:
    assert [fault.name for fault in self_test_faults(CONFIGS["tiny-glm4-moe"])] == [
        name for name in SELF_TEST if name != "sigmoid<->softmax/sigmoid"
    ]
    assert "w_sh=1/r" not in {fault.name for fault in self_test_faults(CONFIGS["tiny-qwen3-moe"])}
    assert "renorm_flip" in {fault.name for fault in self_test_faults(CONFIGS["tiny-qwen3-moe"])}


def test_an_unknown_fault_is_refused_with_the_near_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'drop_r'"):
        fault_of("dropr", CONFIGS["tiny-glm4-moe"])
