"""transformers' routers, fed with logits through an identity matrix in place of their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

import moecheck
from moecheck.numerics import INPUT

from ._transformers import Config, module, routing_of, set_weight

Routed = tuple[torch.Tensor, torch.Tensor]
FP32 = moecheck.Numerics(out="fp32")
LOW_WEIGHTS = moecheck.Numerics(topk_weights=INPUT, out="fp32")
LOW_SCORES = moecheck.Numerics(scores=INPUT, topk_weights=INPUT, out="fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """One router class: the spec that it implements, and the fields of that spec which its config sets.

    forward calls the module as its block does and returns (logits, weights, ids).
    """

    model: str
    owner: str
    spec: moecheck.RoutingSpec
    config_fields: tuple[str, ...]
    forward: Callable[[nn.Module, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, ...]]


def _call(router: nn.Module, logits: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    routed: tuple[torch.Tensor, ...] = router(logits)
    return routed


def _call_with_buffer(router: nn.Module, logits: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    router.e_score_correction_bias = _given(bias)
    return _call(router, logits, bias)


def _call_with_bias(router: nn.Module, logits: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    routed: tuple[torch.Tensor, ...] = router(logits, _given(bias))
    return routed


def _call_with_statics(router: nn.Module, logits: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    set_weight(router.get_submodule("moe_statics"), "e_score_correction_bias", _given(bias)[None])
    return _call(router, logits, bias)


_SOFTMAX = moecheck.RoutingSpec(renormalize=True)
_NOAUX = moecheck.RoutingSpec(
    scoring="sigmoid", correction_bias="select", group_score="top2_sum", renorm_eps_rule="add", renorm_eps=1e-20
)
_GROUPED = ("top_k", "renormalize", "num_expert_groups", "topk_groups", "routed_scaling_factor")
ROUTERS = {
    "mixtral": Router(
        model="mixtral", owner="MixtralTopKRouter", spec=_SOFTMAX, config_fields=("top_k",), forward=_call
    ),
    "qwen2_moe": Router(
        model="qwen2_moe",
        owner="Qwen2MoeTopKRouter",
        spec=_SOFTMAX,
        config_fields=("top_k", "renormalize"),
        forward=_call,
    ),
    "qwen3_moe": Router(
        model="qwen3_moe",
        owner="Qwen3MoeTopKRouter",
        spec=_SOFTMAX,
        config_fields=("top_k", "renormalize"),
        forward=_call,
    ),
    "olmoe": Router(
        model="olmoe", owner="OlmoeTopKRouter", spec=_SOFTMAX, config_fields=("top_k", "renormalize"), forward=_call
    ),
    "deepseek_v2": Router(
        model="deepseek_v2",
        owner="DeepseekV2TopkRouter",
        spec=moecheck.RoutingSpec(group_mask="zero"),
        config_fields=("top_k", "num_expert_groups", "topk_groups", "routed_scaling_factor"),
        forward=_call,
    ),
    "deepseek_v3": Router(
        model="deepseek_v3",
        owner="DeepseekV3TopkRouter",
        spec=_NOAUX,
        config_fields=_GROUPED,
        forward=_call_with_buffer,
    ),
    "glm4_moe": Router(
        model="glm4_moe", owner="Glm4MoeTopkRouter", spec=_NOAUX, config_fields=_GROUPED, forward=_call_with_buffer
    ),
    "deepseek_v4": Router(
        model="deepseek_v4",
        owner="DeepseekV4TopKRouter",
        spec=replace(_NOAUX, scoring="sqrt_softplus", renormalize=True),
        config_fields=("top_k", "routed_scaling_factor"),
        forward=_call_with_buffer,
    ),
    "minimax_m2": Router(
        model="minimax_m2",
        owner="MiniMaxM2TopKRouter",
        spec=moecheck.RoutingSpec(scoring="sigmoid", correction_bias="select", renormalize=True),
        config_fields=("top_k",),
        forward=_call_with_bias,
    ),
    "ernie4_5_moe": Router(
        model="ernie4_5_moe",
        owner="Ernie4_5_MoeTopKRouter",
        spec=moecheck.RoutingSpec(correction_bias="select", renormalize=True, renorm_eps_rule="clamp_min"),
        config_fields=("top_k", "renorm_eps"),
        forward=_call_with_statics,
    ),
    "gpt_oss": Router(
        model="gpt_oss",
        owner="GptOssTopKRouter",
        spec=moecheck.RoutingSpec(softmax_over_selected=True),
        config_fields=("top_k",),
        forward=_call,
    ),
    "granitemoe": Router(
        model="granitemoe",
        owner="GraniteMoeTopKRouter",
        spec=moecheck.RoutingSpec(softmax_over_selected=True),
        config_fields=("top_k",),
        forward=_call,
    ),
    "phimoe": Router(
        model="phimoe",
        owner="PhimoeTopKRouter",
        spec=moecheck.RoutingSpec(selection="sparsemixer"),
        config_fields=("sparsemixer_epsilon",),
        forward=_call,
    ),
}


@moecheck.kernel("topk_routing", backend="torch", name="transformers/mixtral_router", numerics=FP32)
def mixtral(*, router_logits: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """Softmax over all experts, renormalised. Shapes as in topk_routing, here and below."""
    return route("mixtral", router_logits, spec)


@moecheck.kernel("topk_routing", backend="torch", name="transformers/qwen3_moe_router", numerics=LOW_WEIGHTS)
def qwen3_moe(*, router_logits: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """Softmax over all experts, weights stored in the logits' dtype."""
    return route("qwen3_moe", router_logits, spec)


@moecheck.kernel("topk_routing", backend="torch", name="transformers/olmoe_router", numerics=LOW_WEIGHTS)
def olmoe(*, router_logits: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """As Qwen3-MoE's."""
    return route("olmoe", router_logits, spec)


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="transformers/deepseek_v2_router",
    specs=routing_of("deepseek-v2"),
    numerics=FP32,
)
def deepseek_v2(*, router_logits: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """Group-limited greedy: softmax, best expert of each group, other groups masked with 0."""
    return route("deepseek_v2", router_logits, spec)


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="transformers/deepseek_v3_router",
    specs=routing_of("deepseek-v3", "kimi-k2"),
    numerics=FP32,
)
def deepseek_v3(*, router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """Sigmoid scores, biased choice in the best groups by the sum of two."""
    return route("deepseek_v3", router_logits, spec, correction_bias)


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="transformers/glm4_moe_router",
    specs=routing_of("glm-4.5", "ling-mini-2.0"),
    numerics=FP32,
)
def glm4_moe(*, router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """As DeepSeek-V3's."""
    return route("glm4_moe", router_logits, spec, correction_bias)


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="transformers/deepseek_v4_router",
    specs=routing_of("deepseek-v4-flash"),
    numerics=LOW_SCORES,
)
def deepseek_v4(*, router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """sqrt(softplus) scores, biased choice, every step in the logits' dtype."""
    return route("deepseek_v4", router_logits, spec, correction_bias)


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="transformers/minimax_m2_router",
    specs=routing_of("minimax-m2"),
    numerics=FP32,
)
def minimax_m2(*, router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """Sigmoid scores, biased choice, renormalised without eps."""
    return route("minimax_m2", router_logits, spec, correction_bias)


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="transformers/ernie4_5_moe_router",
    specs=routing_of("ernie-4.5-21b"),
    numerics=LOW_WEIGHTS,
)
def ernie4_5_moe(*, router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """Softmax scores, biased choice, the divisor at least moe_norm_min."""
    return route("ernie4_5_moe", router_logits, spec, correction_bias)


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="transformers/gpt_oss_router",
    specs=routing_of("gpt-oss-20b"),
    numerics=LOW_WEIGHTS,
)
def gpt_oss(*, router_logits: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """Softmax over the chosen logits, in their dtype."""
    return route("gpt_oss", router_logits, spec)


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="transformers/granitemoe_router",
    specs=routing_of("granite-3-1b"),
    numerics=LOW_WEIGHTS,
)
def granitemoe(*, router_logits: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """Softmax over the chosen logits in fp32, weights stored in the logits' dtype."""
    return route("granitemoe", router_logits, spec)


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="transformers/phimoe_router",
    specs=routing_of("phi-3.5-moe"),
    numerics=LOW_SCORES,
)
def phimoe(*, router_logits: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """The two rounds of SparseMixer at inference, in the logits' dtype."""
    return route("phimoe", router_logits, spec)


def route(
    name: str, router_logits: torch.Tensor, spec: moecheck.RoutingSpec, correction_bias: torch.Tensor | None = None
) -> Routed:
    """topk_weights [T, top_k] float32 and topk_ids [T, top_k] int32 of one entry of ROUTERS.

    router_logits: [T, E]. correction_bias: [E] float32. Raises Unsupported for a spec that the class has not.
    """
    if not bool(router_logits.isfinite().all()):
        raise moecheck.Unsupported("the logits pass through a matrix product, which turns an Inf into NaN elsewhere")
    router = ROUTERS[name]
    check_spec(router, spec)
    num_experts = router_logits.shape[1]
    built = module(router.model, router.owner, _config(spec, num_experts))
    set_weight(built, "weight", torch.eye(num_experts, dtype=router_logits.dtype, device=router_logits.device))
    if name == "gpt_oss":
        set_weight(built, "bias", router_logits.new_zeros(num_experts))
    with torch.no_grad():
        first, weights, last = router.forward(built, router_logits, correction_bias)
    # The logits come first and the ids last; Granite's class of release 5.17 has them the other way round.
    ids = first if last.is_floating_point() else last
    return weights.float(), ids.to(torch.int32)


def check_spec(router: Router, spec: moecheck.RoutingSpec) -> None:
    """Raise Unsupported, naming the first difference, unless the router's class computes `spec`."""
    free = {field: getattr(spec, field) for field in router.config_fields}
    wanted, seen = _canonical(replace(router.spec, **free)), _canonical(spec)
    for field in fields(moecheck.RoutingSpec):
        value, given = getattr(wanted, field.name), getattr(seen, field.name)
        if value != given:
            raise moecheck.Unsupported(f"{router.owner} implements {field.name}={value!r}, not {given!r}")


def _canonical(spec: moecheck.RoutingSpec) -> moecheck.RoutingSpec:
    """The spec with each field that changes nothing at its default."""
    default = moecheck.RoutingSpec()
    unused: list[str] = []
    if not spec.renormalize:
        unused += ["renorm_norm", "renorm_eps", "renorm_eps_rule"]
    elif spec.renorm_eps_rule in ("none", "where_positive"):
        unused += ["renorm_eps"]
    if spec.num_expert_groups == spec.topk_groups:
        unused += ["num_expert_groups", "topk_groups", "group_score", "group_mask"]
    if spec.routed_scaling_factor == 1.0:
        unused += ["scaling_placement"]
    if spec.routed_scaling_factor == 1.0 or spec.renormalize:
        unused += ["scaling_needs_renormalize"]
    if spec.softmax_over_selected:
        unused += ["choose_by_logits"]
    if not spec.num_fused_shared_experts:
        unused += ["shared_slot_ranks"]
    if spec.selection != "sparsemixer":
        unused += ["sparsemixer_epsilon"]
    return replace(spec, **{name: getattr(default, name) for name in unused})


def _config(spec: moecheck.RoutingSpec, num_experts: int) -> Config:
    return Config(
        num_experts=num_experts,
        hidden_size=num_experts,
        num_experts_per_tok=spec.top_k,
        norm_topk_prob=spec.renormalize,
        n_group=spec.num_expert_groups,
        topk_group=spec.topk_groups,
        topk_method="greedy" if spec.num_expert_groups == 1 else "group_limited_greedy",
        routed_scaling_factor=spec.routed_scaling_factor,
        moe_norm_min=spec.renorm_eps,
        router_jitter_noise=spec.sparsemixer_epsilon,
    )


def _given(bias: torch.Tensor | None) -> torch.Tensor:
    if bias is None:
        raise moecheck.Unsupported("this router has a correction bias, which was not given")
    return bias
