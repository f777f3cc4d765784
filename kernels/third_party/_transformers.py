"""Builds the modules of transformers' MoE models from plain sizes, once per configuration."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass

import torch
from torch import nn

import moecheck
from moecheck.models import MODELS

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu2": "relu2"}


@dataclass(frozen=True)
class Config:
    """The attributes that transformers' MoE classes read from a model's config, under the library's own names."""

    num_experts: int
    hidden_size: int
    intermediate_size: int = 0
    num_experts_per_tok: int = 1
    hidden_act: str = "silu"
    _experts_implementation: str = "eager"
    norm_topk_prob: bool = False
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    topk_method: str = "greedy"
    scoring_func: str = "sqrtsoftplus"
    moe_norm_min: float = 0.0
    use_expert_bias: bool = False
    router_jitter_noise: float = 0.0
    swiglu_alpha: float = 1.0
    swiglu_limit: float | None = None
    n_shared_experts: int = 1
    input_jitter_noise: float = 0.0
    zero_expert_num: int = 0
    moe_latent_size: None = None
    mlp_bias: bool = False

    @property
    def num_local_experts(self) -> int:
        return self.num_experts

    @property
    def n_routed_experts(self) -> int:
        return self.num_experts

    @property
    def moe_intermediate_size(self) -> int:
        return self.intermediate_size

    @property
    def shared_expert_intermediate_size(self) -> int:
        return self.intermediate_size

    @property
    def mlp_hidden_act(self) -> str:
        return self.hidden_act


@functools.cache
def module(model: str, class_name: str, config: Config) -> nn.Module:
    """The library's class without storage for its weights; the caller assigns them.

    Raises Unsupported when this release of transformers has no such class.
    """
    # Importing the models takes seconds, so it waits for the first case.
    library = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    if not hasattr(library, class_name):
        version = importlib.import_module("transformers").__version__
        raise moecheck.Unsupported(f"transformers {version} has no {class_name}")
    with torch.device("meta"):
        built: nn.Module = getattr(library, class_name)(config)
    return built.eval()


def set_weight(owner: nn.Module, name: str, values: torch.Tensor) -> None:
    """Make `values` the parameter `name` of a module, without copying it."""
    setattr(owner, name, nn.Parameter(values, requires_grad=False))


def activation_name(spec: moecheck.ExpertSpec, expected: moecheck.ExpertSpec) -> str:
    """The library's name of the spec's activation.

    Raises Unsupported unless the spec is `expected` with any activation that the library has.
    """
    for field in ("gated", "gate_up_layout", "swiglu_beta", "swiglu_limit", "limit_position", "swiglu_alpha"):
        seen, wanted = getattr(spec, field), getattr(expected, field)
        if seen != wanted and not _irrelevant(field, spec):
            raise moecheck.Unsupported(f"this class implements {field}={wanted!r}, not {seen!r}")
    for field in ("w13_bias", "w2_bias", "weight_on_input"):
        if getattr(spec, field) != getattr(expected, field):
            raise moecheck.Unsupported(f"this class implements {field}={getattr(expected, field)} only")
    if spec.activation not in ACTIVATIONS:
        raise moecheck.Unsupported(f"transformers has no activation {spec.activation!r}")
    return ACTIVATIONS[spec.activation]


def _irrelevant(field: str, spec: moecheck.ExpertSpec) -> bool:
    """Whether the field changes nothing: layout, beta without a gate; the limit's place without a limit."""
    return (field in ("gate_up_layout", "swiglu_beta") and not spec.gated) or (
        field == "limit_position" and spec.swiglu_limit is None
    )


def sentinel_ids(topk_ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    """topk_ids [T, top_k] as int64, with the library's mark of an absent expert, num_experts, for -1."""
    return topk_ids.long().masked_fill(topk_ids < 0, num_experts)


def routing_of(*models: str) -> tuple[moecheck.MoESpec, ...]:
    """The routing of known models as specs for `@moecheck.kernel(specs=...)`."""
    return tuple(moecheck.MoESpec(routing=MODELS[name].spec.routing) for name in models)
