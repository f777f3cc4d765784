"""Sizes and semantics of an embedded model, read from and written to a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecheck.cases import Case
from moecheck.errors import UsageError
from moecheck.json_text import loads
from moecheck.spec import MoESpec, RoutingSpec
from moecheck.typed import check_types

CONFIG = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyConfig:
    """A decoder with grouped-query attention and, from layer `dense_layers` on, Mixture-of-Experts blocks.

    rotary_size: how many of a head's dimensions are rotated. qk_norm: queries and keys are normalised per head.
    shared_intermediate_size: 0 without shared experts. spec: of the Mixture-of-Experts blocks. The embedding is the
    output matrix, too.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    rotary_size: int
    rope_theta: float
    norm_eps: float
    qk_norm: bool
    dense_layers: int
    intermediate_size: int
    num_experts: int
    expert_intermediate_size: int
    shared_intermediate_size: int
    spec: MoESpec
    max_positions: int
    end_token: int

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(range(self.dense_layers, self.num_layers))

    def case(self, op: str, *, num_tokens: int, dtype: str) -> Case:
        """The call that a block makes of `op`, as a case: what decides whether a kernel can take it."""
        whole = op == "moe_layer"
        spec = self.spec if whole else MoESpec(routing=self.spec.routing, experts=self.spec.experts)
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


def read_config(folder: Path) -> TinyConfig:
    """The configuration of a model's folder; raises UsageError for one that the embedded inference does not know."""
    try:
        data = loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read {folder / CONFIG}: {error}.") from error
    readers = {"glm4_moe": _glm4_moe, "qwen3_moe": _qwen3_moe}
    if not isinstance(data, dict) or data.get("model_type") not in list(readers):
        known = ", ".join(readers)
        raise UsageError(f"{folder / CONFIG} is of no model that runs embedded ({known}); transformers may run it.")
    try:
        config = readers[data["model_type"]](data)
        check_types(config)
        return config
    except KeyError as error:
        raise UsageError(f"{folder / CONFIG} has no {error}.") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(f"{folder / CONFIG} cannot be read: {error}.") from error


def to_json(config: TinyConfig) -> dict[str, Any]:
    """What config.json holds, for transformers of version 5 and for engines that read older names."""
    routing = config.spec.routing
    common = {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "moe_intermediate_size": config.expert_intermediate_size,
        "num_experts_per_tok": routing.top_k,
        "norm_topk_prob": routing.renormalize,
        "bos_token_id": None,
        "pad_token_id": config.end_token,
        "eos_token_id": config.end_token,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }
    if config.model_type == "qwen3_moe":
        return {
            **common,
            "architectures": ["Qwen3MoeForCausalLM"],
            "num_experts": config.num_experts,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(range(config.dense_layers)),
            "router_aux_loss_coef": 0.001,
            "output_router_logits": False,
            "use_sliding_window": False,
        }
    partial = config.rotary_size / config.head_size
    return {
        **common,
        "architectures": ["Glm4MoeForCausalLM"],
        "rope_parameters": {**common["rope_parameters"], "partial_rotary_factor": partial},  # type: ignore[dict-item]
        "partial_rotary_factor": partial,
        "use_qk_norm": config.qk_norm,
        "n_routed_experts": config.num_experts,
        "n_shared_experts": config.shared_intermediate_size // config.expert_intermediate_size,
        "routed_scaling_factor": routing.routed_scaling_factor,
        "n_group": routing.num_expert_groups,
        "topk_group": routing.topk_groups,
        "first_k_dense_replace": config.dense_layers,
        "num_nextn_predict_layers": 0,
    }


def glm4_routing(
    *, top_k: int, num_expert_groups: int, topk_groups: int, routed_scaling_factor: float, renormalize: bool = True
) -> RoutingSpec:
    """GLM-4.5's router as transformers has it: groups are scored by the sum of their best two even where there is one.

    Source: transformers models/glm4_moe, Glm4MoeTopkRouter (1e-20 is added to the sum of the weights).
    """
    return RoutingSpec(
        top_k=top_k,
        scoring="sigmoid",
        correction_bias="select",
        num_expert_groups=num_expert_groups,
        topk_groups=topk_groups,
        group_score="top2_sum" if num_expert_groups > 1 else "max",
        renormalize=renormalize,
        renorm_eps=1e-20,
        renorm_eps_rule="add",
        routed_scaling_factor=routed_scaling_factor,
    )


def _glm4_moe(data: Mapping[str, Any]) -> TinyConfig:
    routing = glm4_routing(
        top_k=data["num_experts_per_tok"],
        num_expert_groups=data["n_group"],
        topk_groups=data["topk_group"],
        routed_scaling_factor=data["routed_scaling_factor"],
        renormalize=data["norm_topk_prob"],
    )
    shared = data["n_shared_experts"]
    return _common(
        data,
        rotary_share=_rope(data, "partial_rotary_factor", 0.5),
        qk_norm=data["use_qk_norm"],
        dense_layers=data["first_k_dense_replace"],
        num_experts=data["n_routed_experts"],
        shared_intermediate_size=shared * data["moe_intermediate_size"],
        spec=MoESpec(routing=routing, shared_experts="ungated" if shared else "none"),
    )


def _qwen3_moe(data: Mapping[str, Any]) -> TinyConfig:
    dense = list(data.get("mlp_only_layers") or [])
    if data.get("decoder_sparse_step", 1) != 1 or dense != list(range(len(dense))):
        raise UsageError("The embedded inference takes dense layers before all others only.")
    return _common(
        data,
        rotary_share=1.0,
        qk_norm=True,
        dense_layers=len(dense),
        num_experts=data["num_experts"] if "num_experts" in data else data["num_local_experts"],
        shared_intermediate_size=0,
        spec=MoESpec(routing=RoutingSpec(top_k=data["num_experts_per_tok"], renormalize=data["norm_topk_prob"])),
    )


def _common(
    data: Mapping[str, Any],
    *,
    rotary_share: float,
    qk_norm: bool,
    dense_layers: int,
    num_experts: int,
    shared_intermediate_size: int,
    spec: MoESpec,
) -> TinyConfig:
    for name, value in (("attention_bias", False), ("hidden_act", "silu"), ("tie_word_embeddings", True)):
        if data[name] != value:
            raise UsageError(f"The embedded inference takes {name}={value!r} only, not {data[name]!r}.")
    head = data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]
    return TinyConfig(
        model_type=data["model_type"],
        vocab_size=data["vocab_size"],
        hidden_size=data["hidden_size"],
        num_layers=data["num_hidden_layers"],
        num_heads=data["num_attention_heads"],
        num_key_value_heads=data["num_key_value_heads"],
        head_size=head,
        rotary_size=int(head * rotary_share),
        rope_theta=float(_rope(data, "rope_theta", 10000.0)),
        norm_eps=data["rms_norm_eps"],
        qk_norm=qk_norm,
        dense_layers=dense_layers,
        intermediate_size=data["intermediate_size"],
        num_experts=num_experts,
        expert_intermediate_size=data["moe_intermediate_size"],
        shared_intermediate_size=shared_intermediate_size,
        spec=spec,
        max_positions=data["max_position_embeddings"],
        end_token=data["eos_token_id"],
    )


def _rope(data: Mapping[str, Any], name: str, default: float) -> float:
    """A parameter of the rotary embedding, which newer configurations keep in a record of their own."""
    value: float = (data.get("rope_parameters") or {}).get(name, data.get(name, default))
    return value
