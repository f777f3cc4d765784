"""Adapters of CUDA libraries: how they skip, and what they hand to a library, which stands in here as a fake."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from moecheck import ExpertSpec, RoutingSpec, Unsupported
from moecheck.kernels.third_party import _require
from moecheck.runner.worker import inspect_module
from moecheck.spec import SWIGLUOAI

PLACE = "moecheck.kernels.third_party"
MODULES = {
    "liger_experts": ("liger_kernel", "liger-kernel"),
    "moe_ops_rows": ("moe_ops", "moe-ops"),
    "vllm_experts": ("vllm", "vllm"),
    "vllm_fp8_experts": ("vllm", "vllm"),
    "vllm_modular_experts": ("vllm", "vllm"),
    "vllm_routers": ("vllm", "vllm"),
    "vllm_rows": ("vllm", "vllm"),
}
TOKENS, EXPERTS, HIDDEN, INTER, TOP_K = 3, 4, 16, 8, 2


@pytest.mark.parametrize("module", MODULES)
def test_a_library_that_is_not_installed_is_skipped_with_the_command_that_installs_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, install = MODULES[module]
    monkeypatch.setattr(_require, "find_spec", lambda name: None)
    _forget(monkeypatch)
    loaded = inspect_module(f"{PLACE}.{module}")
    assert loaded.skip == f"needs {package}, which is not installed: pip install {install}"


@pytest.mark.parametrize("module", MODULES)
def test_a_library_without_a_gpu_is_skipped_and_not_imported(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, _ = MODULES[module]
    monkeypatch.setattr(_require, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _forget(monkeypatch)
    loaded = inspect_module(f"{PLACE}.{module}")
    assert loaded.skip == f"needs a CUDA device, on which {package} runs"
    assert package not in sys.modules


def test_scaled_grouped_mm_says_that_it_needs_a_gpu() -> None:
    adapter = importlib.import_module(f"{PLACE}.torch_scaled_grouped_mm")
    scales = {"w13_scale": torch.ones(EXPERTS, 2 * INTER, 1), "w2_scale": torch.ones(EXPERTS, HIDDEN, 1)}
    with pytest.raises(Unsupported, match="needs a CUDA device"):
        adapter.scaled_grouped_mm(**_experts(), **scales, spec=ExpertSpec())


class Recorder:
    """A function that keeps its arguments and returns what it is told to."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.positional: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.positional, self.named = args, kwargs
        return self.result


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Recorder]:
    """The adapter, and what it calls."""
    call = Recorder(torch.zeros(TOKENS, HIDDEN))
    operations = ModuleType("liger_kernel.ops.fused_moe")
    operations.LigerFusedMoEFunction = SimpleNamespace(apply=call)  # type: ignore[attr-defined]  # a fake
    return _imported("liger_experts", {"liger_kernel.ops.fused_moe": operations}, monkeypatch), call


def test_liger_gets_its_arguments_in_its_order(liger: tuple[Any, Recorder]) -> None:
    adapter, call = liger
    arguments = _experts()
    assert adapter.fused_moe(**arguments, spec=ExpertSpec()) is call.result
    names = ("hidden_states", "w13", "w2", "topk_ids", "topk_weights")
    assert all(given is arguments[name] for given, name in zip(call.positional, names, strict=True))


@pytest.mark.parametrize(
    ("changes", "spec", "reason"),
    [
        pytest.param({}, ExpertSpec(activation="gelu"), "activation in", id="another activation"),
        pytest.param({}, ExpertSpec(gate_up_layout="up_first"), "gate_up_layout in", id="another order of gate and up"),
        pytest.param({}, SWIGLUOAI, "gate_up_layout in", id="the activation of GPT-OSS"),
        pytest.param({"topk_ids": torch.full((TOKENS, TOP_K), -1)}, ExpertSpec(), "contains -1", id="absent experts"),
    ],
)
def test_liger_says_what_it_does_not_compute(
    liger: tuple[Any, Recorder], changes: dict[str, Any], spec: ExpertSpec, reason: str
) -> None:
    adapter, call = liger
    with pytest.raises(Unsupported, match=reason):
        adapter.fused_moe(**(_experts() | changes), spec=spec)
    assert call.positional == ()


@pytest.fixture
def moe_ops(monkeypatch: pytest.MonkeyPatch) -> Any:
    library = ModuleType("moe_ops")
    return _imported("moe_ops_rows", {"moe_ops": library}, monkeypatch), library


def test_moe_ops_maps_rows_slot_by_slot(moe_ops: tuple[Any, Any]) -> None:
    adapter, library = moe_ops
    index = torch.arange(TOKENS * TOP_K, dtype=torch.int32).view(TOP_K, TOKENS).T.contiguous()
    library.permute = Recorder((torch.zeros(6, HIDDEN), index.T.flatten(), torch.zeros(EXPERTS + 1)))
    arguments = _experts()
    *_, inverse = adapter.permute(
        hidden_states=arguments["hidden_states"], topk_ids=arguments["topk_ids"], num_experts=EXPERTS
    )
    assert torch.equal(inverse, index)

    library.unpermute = Recorder(torch.zeros(TOKENS, HIDDEN))
    adapter.unpermute(permuted=torch.zeros(6, HIDDEN), topk_weights=arguments["topk_weights"], inv_permuted_idx=inverse)
    assert torch.equal(library.unpermute.positional[1], index.T.flatten())


def test_moe_ops_counts_experts_in_powers_of_two(moe_ops: tuple[Any, Any]) -> None:
    adapter, _ = moe_ops
    with pytest.raises(Unsupported, match="not 6"):
        adapter.permute(
            hidden_states=torch.zeros(1, HIDDEN), topk_ids=torch.zeros(1, 1, dtype=torch.int32), num_experts=6
        )


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """VLLM's parts as fakes: the modules of the adapters, by name, and vLLM's own."""
    layers = "vllm.model_executor.layers.fused_moe"
    fused = ModuleType(layers)
    fused.MoEActivation = _Activation  # type: ignore[attr-defined]  # a fake
    fused.fused_experts = Recorder(torch.zeros(TOKENS, HIDDEN))  # type: ignore[attr-defined]
    fused.fused_topk = Recorder((torch.ones(TOKENS, TOP_K), torch.zeros(TOKENS, TOP_K), None))  # type: ignore[attr-defined]
    config = ModuleType(f"{layers}.config")
    config.FusedMoEQuantConfig = SimpleNamespace(make=dict)  # type: ignore[attr-defined]
    config.fp8_w8a8_moe_quant_config = dict  # type: ignore[attr-defined]
    config.int8_w8a8_moe_quant_config = dict  # type: ignore[attr-defined]
    deep_gemm = ModuleType("vllm.utils.deep_gemm")
    deep_gemm.is_deep_gemm_e8m0_used = lambda: False  # type: ignore[attr-defined]
    grouped = ModuleType(f"{layers}.router.grouped_topk_router")
    grouped.fused_grouped_topk = Recorder((torch.ones(TOKENS, TOP_K), torch.zeros(TOKENS, TOP_K)))  # type: ignore[attr-defined]
    biased = ModuleType(f"{layers}.router.fused_topk_bias_router")
    biased.fused_topk_bias = grouped.fused_grouped_topk  # type: ignore[attr-defined]
    fakes = {module.__name__: module for module in (fused, config, deep_gemm, grouped, biased)}
    fakes["vllm._custom_ops"] = ModuleType("vllm._custom_ops")
    return SimpleNamespace(
        experts=_imported("vllm_experts", fakes, monkeypatch),
        fp8=_imported("vllm_fp8_experts", fakes, monkeypatch),
        routers=_imported("vllm_routers", fakes, monkeypatch),
        fused=fused,
        grouped=grouped,
    )


class _Activation:
    """An enumeration of vLLM, whose members the adapters compare by identity."""

    SWIGLUOAI = "swigluoai"

    def __new__(cls, name: str) -> Any:
        return name


def test_vllm_gets_biases_and_the_global_number_of_experts(vllm: Any) -> None:
    arguments = _experts() | {
        "w13_bias": torch.zeros(EXPERTS, 2 * INTER),
        "w2_bias": torch.zeros(EXPERTS, HIDDEN),
        "expert_map": torch.arange(EXPERTS, dtype=torch.int32),
    }
    vllm.experts.fused_experts(**arguments, spec=ExpertSpec(activation="gelu_tanh", w13_bias=True, w2_bias=True))
    named = vllm.fused.fused_experts.named
    assert (named["activation"], named["global_num_experts"]) == ("gelu_tanh", EXPERTS)
    assert named["quant_config"] == {"w1_bias": arguments["w13_bias"], "w2_bias": arguments["w2_bias"]}
    assert named["apply_router_weight_on_input"] is False


@pytest.mark.parametrize(
    ("kernel", "top_k", "spec", "reason"),
    [
        pytest.param("fused_experts", 4, ExpertSpec(), "adds 4 slots in the input's format", id="a low sum"),
        pytest.param("fused_experts_low_sum", 8, ExpertSpec(), "adds 8 slots in fp32", id="no low sum"),
        pytest.param("fused_experts_gpt_oss", 4, ExpertSpec(), "declares what this activation", id="not GPT-OSS's"),
        pytest.param("fused_experts_low_sum", 4, SWIGLUOAI, "declares what this activation", id="GPT-OSS's"),
        pytest.param("fused_experts", 2, ExpertSpec(activation="relu2"), "activation in", id="relu2"),
    ],
)
def test_each_vllm_kernel_runs_what_its_contract_declares(
    vllm: Any, kernel: str, top_k: int, spec: ExpertSpec, reason: str
) -> None:
    arguments = _experts() | {
        "topk_weights": torch.ones(TOKENS, top_k),
        "topk_ids": torch.arange(top_k, dtype=torch.int32).expand(TOKENS, top_k),
    }
    with pytest.raises(Unsupported, match=reason):
        getattr(vllm.experts, kernel)(**arguments, spec=spec)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"topk_ids": torch.full((TOKENS, TOP_K), -1)}, "contains -1", id="absent experts"),
        pytest.param({"hidden_states": torch.zeros(0, HIDDEN)}, "without tokens", id="no tokens"),
    ],
)
def test_vllm_is_not_called_with_what_it_cannot_take(vllm: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        vllm.experts.fused_experts(**(_experts() | changes), spec=ExpertSpec())
    assert vllm.fused.fused_experts.named == {}


def test_scales_rounded_to_powers_of_two_need_deep_gemm(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_DEEP_GEMM_E8M0", "")
    arguments = _experts() | {"w13_scale": torch.ones(EXPERTS, 1, 1), "w2_scale": torch.ones(EXPERTS, 1, 1)}
    with pytest.raises(Unsupported, match="floats, for DeepGEMM is not installed"):
        vllm.fp8.fp8_block_ue8m0(**arguments, spec=ExpertSpec())
    with pytest.raises(Unsupported, match="multiples of 128 here, not hidden_size=16"):
        vllm.fp8.fp8_block(**arguments, spec=ExpertSpec())


def test_scales_of_channels_are_said_to_be_per_token(vllm: Any) -> None:
    scales = {"w13_scale": torch.ones(EXPERTS, 2 * INTER, 1), "w2_scale": torch.ones(EXPERTS, HIDDEN, 1)}
    vllm.fp8.fp8_channel(**_experts(), **scales, spec=ExpertSpec())
    config = vllm.fused.fused_experts.named["quant_config"]
    assert config["per_act_token_quant"] is True
    assert config["w1_scale"] is scales["w13_scale"]


def test_a_factor_beside_the_weights_is_left_to_the_layer(vllm: Any) -> None:
    logits = torch.zeros(TOKENS, EXPERTS)
    weights, _ = vllm.routers.fused_topk(router_logits=logits, spec=RoutingSpec(routed_scaling_factor=2.5))
    assert torch.equal(weights, torch.full((TOKENS, TOP_K), 2.5))
    on_output = RoutingSpec(routed_scaling_factor=2.5, scaling_placement="routed_output", renormalize=True)
    weights, _ = vllm.routers.fused_topk(router_logits=logits, spec=on_output)
    assert torch.equal(weights, torch.ones(TOKENS, TOP_K))
    assert vllm.fused.fused_topk.positional[3] is True


def test_groups_reach_vllm_in_its_order(vllm: Any) -> None:
    spec = RoutingSpec(
        scoring="sigmoid", correction_bias="select", num_expert_groups=2, topk_groups=1, group_score="top2_sum"
    )
    vllm.routers.grouped_topk(
        router_logits=torch.zeros(TOKENS, EXPERTS), correction_bias=torch.zeros(EXPERTS), spec=spec
    )
    assert vllm.grouped.fused_grouped_topk.positional[2:4] == (2, False)
    assert vllm.grouped.fused_grouped_topk.positional[5:] == (2, 1)


def _experts() -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.zeros(TOKENS, HIDDEN),
        "w13": torch.zeros(EXPERTS, 2 * INTER, HIDDEN),
        "w2": torch.zeros(EXPERTS, HIDDEN, INTER),
        "topk_weights": torch.ones(TOKENS, TOP_K),
        "topk_ids": torch.arange(TOP_K, dtype=torch.int32).expand(TOKENS, TOP_K).contiguous(),
    }


def _imported(module: str, fakes: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Any:
    """An adapter's module over fakes of its library, forgotten when the test ends."""
    monkeypatch.setattr(_require, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, fake in fakes.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, fake)
    _forget(monkeypatch)
    return importlib.import_module(f"{PLACE}.{module}")


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import the adapters anew, and again after the test."""
    for name in [*(f"{PLACE}.{module}" for module in MODULES), f"{PLACE}._vllm"]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.delitem(sys.modules, name)
