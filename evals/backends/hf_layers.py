"""The Mixture-of-Experts blocks of a transformers model: where they are, what they compute, and how an arm gets in.

Seams: routed experts through transformers' experts interface (transformers.integrations.moe, ALL_EXPERTS_FUNCTIONS),
which every MoE model of version 5 has; router and whole block by replacing their `forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from moecheck.cases import Case
from moecheck.errors import UsageError
from moecheck.evals.tiny.config import glm4_routing
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec

INTERFACE = "moecheck"
ROUTERS, SHARED = ("gate", "router"), ("shared_experts", "shared_expert", "shared_mlp")
# Classes of routers whose semantics are known, so that a kernel can stand for the router or for the whole block.
SIGMOID_ROUTERS = ("Glm4MoeTopkRouter", "DeepseekV3TopkRouter")
SOFTMAX_ROUTERS = ("Qwen3MoeTopKRouter", "Qwen2MoeTopKRouter")


class Hook(Protocol):
    """What an arm does in a block; each method gets the original as its last argument."""

    def experts(
        self, layer: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, original: Callable[..., Any]
    ) -> torch.Tensor: ...

    def router(self, layer: int, hidden: torch.Tensor, original: Callable[..., Any]) -> Any: ...

    def block(self, layer: int, hidden: torch.Tensor, original: Callable[..., Any]) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HFBlock:
    """One block. router, shared: its parts, None where they have no known name. spec: of the whole layer, None where
    the router's semantics are not known; experts: of its experts alone.
    """

    layer: int
    module: nn.Module
    experts_module: nn.Module
    router_module: nn.Module | None
    shared_module: nn.Module | None
    experts: ExpertSpec
    routing: RoutingSpec | None
    top_k: int
    num_experts: int

    @property
    def hidden_size(self) -> int:
        return int(self.weights()["w2"].shape[1])

    @property
    def expert_intermediate_size(self) -> int:
        return int(self.weights()["w2"].shape[2])

    @property
    def shared_intermediate_size(self) -> int:
        shared: Any = self.shared_module
        return 0 if shared is None else int(shared.down_proj.weight.shape[1])

    @property
    def shared_gate(self) -> torch.Tensor | None:
        """[H], where the shared expert is weighed by a sigmoid."""
        gate = getattr(self.module, "shared_expert_gate", None)
        return None if gate is None else gate.weight[0]

    def case(self, op: str, *, num_tokens: int, dtype: str) -> Case:
        """The call that the block makes of `op`, as a case; raises UsageError where its semantics are not known."""
        if op != "fused_experts" and self.routing is None:
            name = type(self.router_module).__name__
            raise UsageError(f"What {name} computes is not known here; a kernel of fused_experts can be tried in it.")
        whole = op == "moe_layer"
        shared = "none" if self.shared_module is None else "ungated" if self.shared_gate is None else "gated"
        spec = MoESpec(
            routing=self.routing or RoutingSpec(top_k=self.top_k),
            experts=self.experts,
            shared_experts=shared if whole else "none",  # type: ignore[arg-type]  # one of the three
        )
        return Case(
            op=op,
            spec=spec,
            num_tokens=num_tokens,
            num_experts=self.num_experts,
            hidden_size=self.hidden_size,
            intermediate_size=self.expert_intermediate_size,
            shared_intermediate_size=self.shared_intermediate_size if whole else 0,
            dtype=dtype,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """w13 [E, 2I, H], w2 [E, H, I] and biases as moecheck's ops have them; views of the model's own."""
        module: Any = self.experts_module
        found = {"w13": module.gate_up_proj, "w2": module.down_proj}
        if getattr(module, "is_transposed", False):
            found = {name: tensor.transpose(1, 2) for name, tensor in found.items()}
        if getattr(module, "has_bias", False):
            found |= {"w13_bias": module.gate_up_proj_bias, "w2_bias": module.down_proj_bias}
        return found

    def constants(self, op: str) -> dict[str, torch.Tensor]:
        """What a kernel of `op` gets beside activations, float32."""
        found: dict[str, torch.Tensor] = {}
        bias = getattr(self.router_module, "e_score_correction_bias", None)
        if bias is not None:
            found["correction_bias"] = bias
        if op != "topk_routing":
            found |= self.weights()
        shared: Any = self.shared_module
        if op == "moe_layer" and shared is not None:
            found["shared_w13"] = torch.cat([shared.gate_proj.weight, shared.up_proj.weight])
            found["shared_w2"] = shared.down_proj.weight
            if self.shared_gate is not None:
                found["shared_gate"] = self.shared_gate
        return {name: tensor.detach().float() for name, tensor in found.items()}


@dataclass(slots=True)
class Seams:
    """The blocks of one model with the forwards that call the hook of the arm that is active, if one is."""

    blocks: dict[int, HFBlock]
    hook: Hook | None = None
    _layers: dict[int, int] = field(default_factory=dict)  # id of an experts module -> layer

    @contextmanager
    def active(self, hook: Hook) -> Iterator[None]:
        """While this arm computes."""
        before, self.hook = self.hook, hook
        try:
            yield
        finally:
            self.hook = before

    def install(self, model: Any) -> None:
        """Once per model: register with the experts interface, and put forwards in front of routers and blocks."""
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(INTERFACE, _dispatch)
        model.set_experts_implementation(INTERFACE)
        for layer, block in self.blocks.items():
            block.experts_module._moecheck = (self, layer)  # type: ignore[assignment]  # found again by _dispatch
            self._wrap(block.module, layer, "block")
            if block.router_module is not None:
                self._wrap(block.router_module, layer, "router")

    def _wrap(self, module: nn.Module, layer: int, method: str) -> None:
        original = module.forward

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.hook is None:
                return original(hidden_states, *args, **kwargs)
            return getattr(self.hook, method)(layer, hidden_states, lambda hidden: original(hidden, *args, **kwargs))

        module.forward = forward


def find_blocks(model: nn.Module) -> dict[int, HFBlock]:
    """By layer. Raises UsageError for a model without experts that transformers' interface can replace."""
    blocks: dict[int, HFBlock] = {}
    for name, module in model.named_modules():
        if all(hasattr(module, part) for part in ("gate_up_proj", "down_proj", "is_transposed")):
            layer = next((int(part) for part in name.split(".") if part.isdigit()), len(blocks))
            blocks[layer] = _block(layer, model.get_submodule(name.rpartition(".")[0]), module, model.config)
    if not blocks:
        raise UsageError(f"{type(model).__name__} has no experts that transformers' experts interface can replace.")
    return dict(sorted(blocks.items()))


def _dispatch(module: nn.Module, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What the experts interface calls."""
    seams, layer = module._moecheck  # type: ignore[misc]  # set by install
    eager = type(module).forward.__wrapped__  # type: ignore[attr-defined]  # functools.wraps

    def original(hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = eager(module, hidden, ids, weights)
        return result

    if seams.hook is None:
        return original(hidden, ids, weights)
    result: torch.Tensor = seams.hook.experts(layer, hidden, ids, weights, original)
    return result


def _block(layer: int, module: nn.Module, experts: nn.Module, config: Any) -> HFBlock:
    def part(names: tuple[str, ...]) -> nn.Module | None:
        found = [getattr(module, name, None) for name in names]
        return next((one for one in found if isinstance(one, nn.Module)), None)

    router: Any = part(ROUTERS)
    top_k = int(getattr(router, "top_k", None) or config.num_experts_per_tok)
    return HFBlock(
        layer=layer,
        module=module,
        experts_module=experts,
        router_module=router,
        shared_module=part(SHARED),
        experts=_expert_spec(experts, config),
        routing=_routing_spec(router, top_k),
        top_k=top_k,
        num_experts=int(experts.gate_up_proj.shape[0]),  # type: ignore[index]  # a Parameter
    )


def _expert_spec(experts: Any, config: Any) -> ExpertSpec:
    if type(experts).__name__ == "GptOssExperts":
        return replace(SWIGLUOAI, swiglu_alpha=float(experts.alpha), swiglu_limit=float(experts.limit))
    activations = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
    name = getattr(config, "hidden_act", "silu")
    if name not in activations:
        raise UsageError(f"The activation {name!r} of this model's experts is not known here.")
    layout = "halves" if getattr(experts, "is_concatenated", True) else "interleaved"
    biases = bool(getattr(experts, "has_bias", False))
    return ExpertSpec(
        activation=activations[name],  # type: ignore[arg-type]  # one of them
        gate_up_layout=layout,  # type: ignore[arg-type]  # one of them
        w13_bias=biases,
        w2_bias=biases,
    )


def _routing_spec(router: Any, top_k: int) -> RoutingSpec | None:
    """Sources: the router classes of transformers/models/{glm4_moe,deepseek_v3,qwen3_moe,qwen2_moe,mixtral,gpt_oss}."""
    name = type(router).__name__
    if name in SIGMOID_ROUTERS:
        return glm4_routing(
            top_k=top_k,
            num_expert_groups=router.num_group,
            topk_groups=router.topk_group,
            routed_scaling_factor=router.routed_scaling_factor,
            renormalize=router.norm_topk_prob,
        )
    if name in SOFTMAX_ROUTERS:
        return RoutingSpec(top_k=top_k, renormalize=router.norm_topk_prob)
    if name == "MixtralTopKRouter":
        return RoutingSpec(top_k=top_k, renormalize=True)
    if name == "GptOssTopKRouter":
        return RoutingSpec(top_k=top_k, softmax_over_selected=True)
    return None
