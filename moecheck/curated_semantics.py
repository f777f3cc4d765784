"""The named cases of rarer semantics as data, op by op: each rule of some model or engine that no other case has."""

from __future__ import annotations

from .curated_routing import Row
from .spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec

_HASH = RoutingSpec(
    top_k=6,
    scoring="sqrt_softplus",
    selection="hash",
    renormalize=True,
    renorm_eps=1e-20,
    renorm_eps_rule="add",
    routed_scaling_factor=1.5,
)
_SIGMOID = RoutingSpec(top_k=4, scoring="sigmoid", correction_bias="select", renormalize=True)


def _row(name: str, reason: str, spec: MoESpec | RoutingSpec | ExpertSpec, **changes: object) -> Row:
    """A case in fp32 unless said otherwise, of a spec or of the part of it that matters."""
    if isinstance(spec, RoutingSpec):
        spec = MoESpec(routing=spec)
    if isinstance(spec, ExpertSpec):
        spec = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True), experts=spec)
    return name, reason, {"dtype": "fp32", "spec": spec, **changes}


_ROUTING: list[Row] = [
    _row("hashed", "DeepSeek-V4's first layers look experts up by token; the gate only weighs", _HASH, num_experts=64),
    _row(
        "capped-biased-logits",
        "sgl-kernel's topk_softmax: a cap, then a bias, both inside the softmax",
        RoutingSpec(top_k=4, softcap=5.0, correction_bias="logits"),
        num_experts=32,
    ),
    _row(
        "sigmoid-of-chosen-logits",
        "Cohere2: chosen by logits, weighed by their sigmoids",
        RoutingSpec(top_k=4, scoring="sigmoid", choose_by_logits=True, renormalize=True),
        num_experts=32,
    ),
    _row(
        "logits-of-llama-4",
        "the sigmoid of one chosen logit, not normalised",
        RoutingSpec(top_k=1, scoring="sigmoid", choose_by_logits=True),
        num_experts=16,
    ),
    _row(
        "two-norm",
        "DBRX divides by any norm: the 2-norm is not the sum",
        RoutingSpec(top_k=4, renormalize=True, renorm_norm=2.0),
        num_experts=16,
    ),
    _row(
        "divisor-from-below",
        "ERNIE-4.5: the divisor is at least so much, which small sums feel",
        RoutingSpec(top_k=2, correction_bias="select", renormalize=True, renorm_eps=0.25, renorm_eps_rule="clamp_min"),
        num_experts=64,
    ),
    _row(
        "visible-eps",
        "LFM2 adds 1e-6, which sigmoids of that size feel",
        RoutingSpec(
            top_k=4,
            scoring="sigmoid",
            correction_bias="select",
            renormalize=True,
            renorm_eps=1e-6,
            renorm_eps_rule="add",
        ),
        load="extreme",
        num_experts=32,
    ),
    _row(
        "divisor-of-nothing",
        "vLLM divides by 1 where the sum is 0",
        RoutingSpec(top_k=4, renormalize=True, renorm_eps_rule="where_positive"),
        load="extreme",
        num_experts=32,
    ),
    _row(
        "biased-extremes",
        "not a number among sigmoid scores: distinct ids in range, other rows untouched",
        _SIGMOID,
        load="extreme",
        num_experts=32,
    ),
    _row(
        "zero-mask-of-negatives",
        "Mistral-4 masks with 0 what may be negative: then masked experts win",
        RoutingSpec(
            top_k=4,
            scoring="sigmoid",
            correction_bias="select",
            num_expert_groups=4,
            topk_groups=2,
            group_score="top2_sum",
            group_mask="zero",
            renormalize=True,
        ),
        load="negative",
        num_experts=32,
    ),
    _row(
        "factor-needs-normalising",
        "SGLang drops the factor where it does not normalise",
        RoutingSpec(top_k=4, routed_scaling_factor=2.5, scaling_needs_renormalize=True),
        num_experts=32,
    ),
    _row(
        "identity-experts",
        "LongCat: the last ids are no matrices, and are chosen like others",
        RoutingSpec(top_k=6, correction_bias="select", routed_scaling_factor=6.0, num_zero_experts=16),
        num_experts=48,
    ),
    _row(
        "shared-slot-on-ranks",
        "four ranks each add the shared expert: a quarter each",
        RoutingSpec(
            top_k=4, renormalize=True, routed_scaling_factor=2.5, num_fused_shared_experts=1, shared_slot_ranks=4
        ),
        num_experts=16,
    ),
    _row(
        "softmax-of-chosen-biased",
        "the bias chooses by logits, and the softmax of the chosen never sees it",
        RoutingSpec(top_k=4, softmax_over_selected=True, correction_bias="select"),
        num_experts=32,
    ),
]
_ACTIVATIONS: list[Row] = [
    _row("situ", "Kimi-K3: beta tanh(g / beta) sigmoid(g)", ExpertSpec(activation="situ", situ_beta=2.0)),
    _row(
        "situ-both",
        "Kimi-K3 with a beta for up as well",
        ExpertSpec(activation="situ", situ_beta=2.0, situ_up_beta=3.0),
    ),
    _row("silu-no-mul", "silu without a gate", ExpertSpec(gated=False)),
    _row("gelu-no-mul", "gelu by the error function without a gate", ExpertSpec(activation="gelu", gated=False)),
    _row("gelu-tanh-no-mul", "gelu by tanh without a gate", ExpertSpec(activation="gelu_tanh", gated=False)),
    _row(
        "swigluoai-halves",
        "MiniMax-M3: GPT-OSS's formula on halves, without biases",
        ExpertSpec(swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0),
    ),
]
_LAYERS: list[Row] = [
    _row(
        "layer-latent",
        "Nemotron-3-Super: the experts work on a narrower latent, router and shared expert on the token itself",
        MoESpec(
            routing=RoutingSpec(
                top_k=6,
                scoring="sigmoid",
                correction_bias="select",
                renormalize=True,
                renorm_eps=1e-20,
                renorm_eps_rule="add",
                routed_scaling_factor=5.0,
            ),
            experts=ExpertSpec(activation="relu2", gated=False),
            shared_experts="ungated",
            latent_experts=True,
        ),
        num_experts=16,
        latent_size=72,
        shared_intermediate_size=96,
    ),
    _row(
        "layer-residual",
        "Grok-2: a dense MLP beside the experts, and the sum over the root of 2",
        MoESpec(
            routing=RoutingSpec(top_k=2, softcap=30.0),
            experts=ExpertSpec(activation="gelu_tanh"),
            shared_experts="ungated",
            sum_factor=0.5**0.5,
        ),
        shared_intermediate_size=136,
    ),
    _row("layer-hashed", "experts looked up by token, in a layer", _HASH, num_experts=16),
    _row(
        "layer-two-limits",
        "Step-3.5: experts clamped at 7 behind the activation, the shared one at 16",
        MoESpec(
            routing=_SIGMOID,
            experts=ExpertSpec(swiglu_limit=7.0, limit_position="after"),
            shared_experts="ungated",
            shared_spec=ExpertSpec(swiglu_limit=16.0, limit_position="after"),
        ),
        num_experts=16,
        shared_intermediate_size=64,
    ),
    _row(
        "layer-fused-shared",
        "a shared expert that rides along as a slot, the factor on the output",
        RoutingSpec(
            top_k=4,
            renormalize=True,
            routed_scaling_factor=2.5,
            scaling_placement="routed_output",
            num_fused_shared_experts=1,
        ),
        num_experts=16,
    ),
]
_PADDING: list[Row] = [
    _row(
        "padding-of-weight-0",
        "some engines pad with expert 0 at weight 0 instead of -1",
        RoutingSpec(top_k=2, renormalize=True),
        load="padding_zero",
    ),
]
SEMANTICS: dict[str, list[Row]] = {
    "topk_routing": _ROUTING,
    "act_and_mul": _ACTIVATIONS,
    "fused_experts": [*_ACTIVATIONS[1:3], *_PADDING],
    "expert_outputs": [_row("swigluoai-biases", "GPT-OSS's experts, not added up", SWIGLUOAI)],
    "moe_layer": _LAYERS,
}
