"""transformers' whole MoE blocks, their gate replaced by the library's router on the given logits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

import moecheck
from moecheck.models import MODELS
from moecheck.numerics import INPUT

from ._transformers import Config, activation_name, module, set_weight
from .transformers_experts import EAGER
from .transformers_routers import route

LOW_WEIGHTS = replace(EAGER, topk_weights=INPUT)


class _GivenLogits(nn.Module):
    """A gate that has routed already: it returns what the library's router made of the given logits."""

    def __init__(self, weights: torch.Tensor, ids: torch.Tensor) -> None:
        super().__init__()
        self.weights, self.ids = weights, ids

    def forward(self, hidden_states: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor]:
        return None, self.weights, self.ids


@moecheck.kernel("moe_layer", backend="torch", name="transformers/mixtral_block", numerics=EAGER)
def mixtral(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """MixtralSparseMoeBlock. hidden_states: [T, H]. router_logits: [T, E] float32. w13: [E, 2I, H]. w2: [E, H, I]."""
    weights, ids = route("mixtral", router_logits, spec.routing)
    block = _block("mixtral", "MixtralSparseMoeBlock", w13, w2, spec, shared="none")
    return _run(block, hidden_states, weights, ids)


@moecheck.kernel("moe_layer", backend="torch", name="transformers/qwen3_moe_block", numerics=LOW_WEIGHTS)
def qwen3_moe(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """Qwen3MoeSparseMoeBlock. Shapes as in mixtral."""
    weights, ids = route("qwen3_moe", router_logits, spec.routing)
    block = _block("qwen3_moe", "Qwen3MoeSparseMoeBlock", w13, w2, spec, shared="none")
    return _run(block, hidden_states, weights.to(hidden_states.dtype), ids)


@moecheck.kernel("moe_layer", backend="torch", name="transformers/olmoe_block", numerics=LOW_WEIGHTS)
def olmoe(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """OlmoeSparseMoeBlock. Shapes as in mixtral."""
    weights, ids = route("olmoe", router_logits, spec.routing)
    block = _block("olmoe", "OlmoeSparseMoeBlock", w13, w2, spec, shared="none")
    return _run(block, hidden_states, weights.to(hidden_states.dtype), ids)


@moecheck.kernel(
    "moe_layer",
    backend="torch",
    name="transformers/qwen2_moe_block",
    specs=(MODELS["qwen1.5-moe-a2.7b"].spec,),
    numerics=LOW_WEIGHTS,
)
def qwen2_moe(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    shared_w13: torch.Tensor,
    shared_w2: torch.Tensor,
    shared_gate: torch.Tensor,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """Qwen2MoeSparseMoeBlock with its gated shared expert. shared_w13: [2S, H]. shared_w2: [H, S]. shared_gate: [H]."""
    weights, ids = route("qwen2_moe", router_logits, spec.routing)
    block = _block("qwen2_moe", "Qwen2MoeSparseMoeBlock", w13, w2, spec, shared="gated")
    _set_shared(block.get_submodule("shared_expert"), shared_w13, shared_w2)
    set_weight(block.get_submodule("shared_expert_gate"), "weight", shared_gate[None])
    return _run(block, hidden_states, weights.to(hidden_states.dtype), ids)


@moecheck.kernel(
    "moe_layer",
    backend="torch",
    name="transformers/deepseek_v3_block",
    specs=(MODELS["deepseek-v3"].spec,),
    numerics=EAGER,
)
def deepseek_v3(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    correction_bias: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    shared_w13: torch.Tensor,
    shared_w2: torch.Tensor,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """DeepseekV3MoE: grouped routing, factor inside the weights, shared experts. Shapes as in qwen2_moe."""
    weights, ids = route("deepseek_v3", router_logits, spec.routing, correction_bias)
    block = _block("deepseek_v3", "DeepseekV3MoE", w13, w2, spec, shared="ungated")
    _set_shared(block.get_submodule("shared_experts"), shared_w13, shared_w2)
    return _run(block, hidden_states, weights, ids)


@moecheck.kernel(
    "moe_layer",
    backend="torch",
    name="transformers/deepseek_v2_block",
    specs=(MODELS["deepseek-v2"].spec,),
    numerics=EAGER,
)
def deepseek_v2(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    shared_w13: torch.Tensor,
    shared_w2: torch.Tensor,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """DeepseekV2Moe: group-limited greedy routing, shared experts. Shapes as in qwen2_moe."""
    weights, ids = route("deepseek_v2", router_logits, spec.routing)
    block = _block("deepseek_v2", "DeepseekV2Moe", w13, w2, spec, shared="ungated")
    _set_shared(block.get_submodule("shared_experts"), shared_w13, shared_w2)
    return _run(block, hidden_states, weights, ids)


@moecheck.kernel(
    "moe_layer", backend="torch", name="transformers/glm4_moe_block", specs=(MODELS["glm-4.5"].spec,), numerics=EAGER
)
def glm4_moe(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    correction_bias: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    shared_w13: torch.Tensor,
    shared_w2: torch.Tensor,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """Glm4MoeMoE: biased sigmoid routing, shared experts. Shapes as in qwen2_moe."""
    weights, ids = route("glm4_moe", router_logits, spec.routing, correction_bias)
    block = _block("glm4_moe", "Glm4MoeMoE", w13, w2, spec, shared="ungated")
    _set_shared(block.get_submodule("shared_experts"), shared_w13, shared_w2)
    return _run(block, hidden_states, weights, ids)


def _block(
    model: str, owner: str, w13: torch.Tensor, w2: torch.Tensor, spec: moecheck.MoESpec, *, shared: str
) -> nn.Module:
    """The library's block with the routed experts' weights in place."""
    for field, only in (("shared_spec", None), ("sum_factor", 1.0)):
        if getattr(spec, field) != only:
            raise moecheck.Unsupported(f"{owner} has {field}={only!r}, not {getattr(spec, field)!r}")
    if spec.shared_experts != shared:
        raise moecheck.Unsupported(f"{owner} has shared_experts={shared!r}, not {spec.shared_experts!r}")
    config = Config(
        num_experts=len(w13),
        hidden_size=w2.shape[1],
        intermediate_size=w2.shape[2],
        hidden_act=activation_name(spec.experts, moecheck.ExpertSpec()),
    )
    block = module(model, owner, config)
    set_weight(block.get_submodule("experts"), "gate_up_proj", w13)
    set_weight(block.get_submodule("experts"), "down_proj", w2)
    return block


def _set_shared(shared: nn.Module, w13: torch.Tensor, w2: torch.Tensor) -> None:
    gate, up = w13.chunk(2)
    set_weight(shared.get_submodule("gate_proj"), "weight", gate)
    set_weight(shared.get_submodule("up_proj"), "weight", up)
    set_weight(shared.get_submodule("down_proj"), "weight", w2)


def _run(block: nn.Module, hidden_states: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    block.gate = _GivenLogits(weights, ids.long())
    with torch.no_grad():
        out: torch.Tensor = block(hidden_states[None])
    return out[0]
