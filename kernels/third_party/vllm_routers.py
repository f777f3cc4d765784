"""vLLM's routers: its CUDA kernels of top-k and of grouped top-k."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

import moecheck
from moecheck.spec import Scoring

from ._require import Routed, require_fields
from ._vllm import FUSED_MOE, LIBRARY, require_tokens

_ROUTER = "vllm.model_executor.layers.fused_moe.router"
BIASED: Any = import_module(f"{_ROUTER}.fused_topk_bias_router")
GROUPED: Any = import_module(f"{_ROUTER}.grouped_topk_router")
FP32 = moecheck.Numerics(out="fp32")
LARGEST_EPS = 1e-20  # of DeepSeek-V3; vLLM adds that, or takes 1 for a sum of 0
SCORING = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrt_softplus": "sqrtsoftplus"}
PLAIN: dict[str, tuple[object, ...]] = {
    "softcap": (None,),
    "softmax_over_selected": (False,),
    "choose_by_logits": (False,),
    "renorm_norm": (1.0,),
    "num_fused_shared_experts": (0,),
    "num_zero_experts": (0,),
    "per_expert_scale": (False,),
    "selection": ("topk",),
    "scaling_needs_renormalize": (False,),
}


def _biased(scoring: Scoring) -> moecheck.MoESpec:
    return moecheck.MoESpec(
        routing=moecheck.RoutingSpec(
            top_k=6, scoring=scoring, correction_bias="select", renormalize=True, routed_scaling_factor=2.5
        )
    )


@moecheck.kernel("topk_routing", backend="cuda", name="vllm/fused_topk", numerics=FP32, deterministic=True)
def fused_topk(*, router_logits: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """topk_softmax or topk_sigmoid. router_logits: [T, E]. Returns weights and ids [T, top_k]."""
    _require(spec, scoring=("softmax", "sigmoid"), correction_bias=("none",), num_expert_groups=(1,))
    weights, ids, _ = FUSED_MOE.fused_topk(
        _hidden(router_logits),
        router_logits.contiguous(),
        spec.top_k,
        spec.renormalize,
        scoring_func=SCORING[spec.scoring],
    )
    return weights * _factor(spec), ids


@moecheck.kernel(
    "topk_routing",
    backend="cuda",
    name="vllm/fused_topk_bias",
    specs=(_biased("sigmoid"), _biased("softmax")),
    numerics=FP32,
    deterministic=True,
)
def fused_topk_bias(
    *, router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec
) -> Routed:
    """Choice by biased scores, weights by plain ones. router_logits: [T, E]. correction_bias: [E] float32."""
    return _with_bias(router_logits, correction_bias, spec, ("softmax", "sigmoid"))


@moecheck.kernel(
    "topk_routing",
    backend="cuda",
    name="vllm/topk_softplus_sqrt",
    specs=(_biased("sqrt_softplus"),),
    numerics=FP32,
    deterministic=True,
)
def topk_softplus_sqrt(
    *, router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec
) -> Routed:
    """DeepSeek-V4's scores. Arguments as above."""
    experts = router_logits.shape[1]
    if experts & (experts - 1):
        raise moecheck.Unsupported(f"vLLM has sqrt-softplus for some numbers of experts; {experts} is not 2^n")
    return _with_bias(router_logits, correction_bias, spec, ("sqrt_softplus",))


@moecheck.kernel(
    "topk_routing",
    backend="cuda",
    name="vllm/grouped_topk",
    specs=(
        moecheck.MoESpec(
            routing=moecheck.RoutingSpec(
                top_k=8,
                scoring="sigmoid",
                correction_bias="select",
                num_expert_groups=8,
                topk_groups=4,
                group_score="top2_sum",
                renormalize=True,
                renorm_eps=1e-20,
                renorm_eps_rule="add",
                routed_scaling_factor=2.5,
            )
        ),
    ),
    numerics=FP32,
    deterministic=True,
)
def grouped_topk(*, router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """DeepSeek-V3's: sigmoid scores, the best groups by the sum of two. Arguments as above."""
    _require(spec, scoring=("sigmoid",), correction_bias=("select",), group_mask=("neg_inf",))
    if spec.num_expert_groups > 1:
        require_fields(spec, LIBRARY, group_score=("top2_sum",))
    weights, ids = GROUPED.fused_grouped_topk(
        _hidden(router_logits),
        router_logits.contiguous(),
        spec.top_k,
        spec.renormalize,
        correction_bias,
        spec.num_expert_groups,
        spec.topk_groups,
        scoring_func="sigmoid",
        routed_scaling_factor=_factor(spec),
    )
    return weights, ids


def _require(spec: moecheck.RoutingSpec, **allowed: tuple[object, ...]) -> None:
    require_fields(spec, LIBRARY, **PLAIN, **allowed)
    if spec.renormalize and spec.renorm_eps > LARGEST_EPS:
        raise moecheck.Unsupported(f"vLLM's divisor is the sum itself, without an eps of {spec.renorm_eps}")


def _with_bias(
    router_logits: torch.Tensor, correction_bias: torch.Tensor, spec: moecheck.RoutingSpec, scoring: tuple[str, ...]
) -> Routed:
    _require(spec, scoring=scoring, correction_bias=("select",), num_expert_groups=(1,))
    weights, ids = BIASED.fused_topk_bias(
        _hidden(router_logits),
        router_logits.contiguous(),
        SCORING[spec.scoring],
        correction_bias,
        spec.top_k,
        spec.renormalize,
        routed_scaling_factor=_factor(spec),
    )
    return weights, ids


def _factor(spec: moecheck.RoutingSpec) -> float:
    return spec.routed_scaling_factor if spec.scaling_placement == "topk_weights" else 1.0


def _hidden(router_logits: torch.Tensor) -> torch.Tensor:
    """Hidden states of as many tokens: of these vLLM reads the number only. Raises Unsupported for no tokens."""
    require_tokens(router_logits)
    return router_logits.new_empty(len(router_logits), 0)
