"""The semantics of an MoE layer as data; each point on which public codebases disagree is a field."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from .errors import SpecError, near
from .quantization import Quantization

Scoring = Literal["softmax", "sigmoid", "sqrt_softplus"]
GroupScore = Literal["max", "top2_sum"]
GroupMask = Literal["neg_inf", "zero"]
BiasUse = Literal["none", "select", "logits"]
EpsRule = Literal["none", "add", "clamp_min", "where_positive"]
ScalingPlacement = Literal["topk_weights", "routed_output", "sum"]
Selection = Literal["topk", "sparsemixer", "hash"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu2", "situ"]
GateUpLayout = Literal["halves", "up_first", "interleaved", "interleaved_8", "interleaved_16"]
LimitPosition = Literal["before", "after"]
SharedExperts = Literal["none", "ungated", "gated"]

# metadata of a field that came after cases had been drawn: at its default it is no part of a record's identity, so that
# those cases keep their ids and their numbers.
LATER = {"later": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSpec:
    """How a token chooses its experts and weighs them.

    With logits l, scores s, correction bias b, chosen ids S and factor r (all float64 in the reference):
    softcap: l <- softcap * tanh(l / softcap). scoring: s = softmax(l), sigmoid(l) or sqrt(softplus(l)).
    softmax_over_selected: choose on l, then w = softmax(l_S) (only with scoring="softmax").
    choose_by_logits: choose on l although w comes from s (differs from choosing on s where a bias is added or scores
    underflow). correction_bias: `select` chooses on s + b and weighs with s; `logits` adds b to l before the scoring.
    num_expert_groups, topk_groups: only experts of the best topk_groups groups may be chosen; a group's score is its
    `max` or the sum of its best two choice scores; the choice scores of other groups are set to -Inf or to 0
    (group_mask). renormalize: w <- w / d with d = (sum_S s^p)^(1/p), p = renorm_norm; renorm_eps_rule: d, d + eps,
    max(d, eps), or d where d > 0 and 1 elsewhere. scaling_placement: r is in `topk_weights`, on the `routed_output`
    before the shared experts are added, or on the `sum` of the routed output and 1/r of the shared one.
    scaling_needs_renormalize: r applies only if renormalize. num_fused_shared_experts: slots appended with ids E,
    E+1, ... whose net weight in the layer's output is exactly 1. num_zero_experts: ids >= E - num_zero_experts are
    identity experts. per_expert_scale: w_i is multiplied by a given scale[i]. selection: `sparsemixer` is the
    two-round rule of Phi-3.5-MoE with threshold 2 * sparsemixer_epsilon; `hash` looks S up by the token,
    S = tid2eid[token_id], and weighs it by the scores (DeepSeek-V4's first layers). shared_slot_ranks: so many ranks
    compute the same fused shared experts and their outputs are added, so each weighs that much less.
    """

    top_k: int = 2
    scoring: Scoring = "softmax"
    softcap: float | None = None
    softmax_over_selected: bool = False
    choose_by_logits: bool = False
    correction_bias: BiasUse = "none"
    num_expert_groups: int = 1
    topk_groups: int = 1
    group_score: GroupScore = "max"
    group_mask: GroupMask = "neg_inf"
    renormalize: bool = False
    renorm_norm: float = 1.0
    renorm_eps: float = 0.0
    renorm_eps_rule: EpsRule = "none"
    routed_scaling_factor: float = 1.0
    scaling_placement: ScalingPlacement = "topk_weights"
    scaling_needs_renormalize: bool = False
    num_fused_shared_experts: int = 0
    num_zero_experts: int = 0
    per_expert_scale: bool = False
    selection: Selection = "topk"
    sparsemixer_epsilon: float = 0.01
    shared_slot_ranks: int = field(default=1, metadata=LATER)

    def __post_init__(self) -> None:
        _check_fields(self)
        _require(self.top_k >= 1, f"top_k={self.top_k} must be at least 1.")
        _require(self.num_fused_shared_experts >= 0, "num_fused_shared_experts must not be negative.")
        _require(self.num_zero_experts >= 0, "num_zero_experts must not be negative.")
        _require(
            1 <= self.topk_groups <= self.num_expert_groups,
            f"topk_groups={self.topk_groups} must lie between 1 and num_expert_groups={self.num_expert_groups}.",
        )
        _require(self.softcap is None or self.softcap > 0, f"softcap={self.softcap} must be positive.")
        _require(
            self.routed_scaling_factor > 0, f"routed_scaling_factor={self.routed_scaling_factor} must be positive."
        )
        _require(self.renorm_eps >= 0, f"renorm_eps={self.renorm_eps} must not be negative.")
        _require(
            not self.softmax_over_selected or self.scoring == "softmax",
            "softmax_over_selected=True needs scoring='softmax'.",
        )
        _require(self.shared_slot_ranks >= 1, f"shared_slot_ranks={self.shared_slot_ranks} must be at least 1.")
        _require(
            self.selection != "hash" or (self.correction_bias == "none" and self.num_expert_groups == 1),
            "selection='hash' chooses by a table: it needs correction_bias='none' and num_expert_groups=1.",
        )
        _require(
            self.selection != "sparsemixer" or self.top_k <= 2,
            f"selection='sparsemixer' is defined for top_k <= 2, not {self.top_k}.",
        )

    @property
    def least_experts(self) -> int:
        """So few experts that a token still has a choice: two of a group, and as many real ones as it needs."""
        groups, real = self.num_expert_groups, self.top_k if self.num_zero_experts else 0
        least = groups * max(2, -(-self.top_k // self.topk_groups))
        return max(least, groups * -(-(real + self.num_zero_experts) // groups))

    def check_num_experts(self, num_experts: int) -> None:
        """Raise SpecError unless this spec can route among `num_experts` experts."""
        groups = self.num_expert_groups
        _require(self.top_k <= num_experts, f"top_k={self.top_k} must be ≤ num_experts={num_experts}.")
        _require(
            num_experts % groups == 0, f"num_experts={num_experts} must be a multiple of num_expert_groups={groups}."
        )
        per_group = num_experts // groups
        _require(
            self.group_score == "max" or groups == 1 or per_group >= 2,
            f"group_score='top2_sum' needs two experts per group, not num_experts={num_experts} in {groups} groups.",
        )
        _require(
            self.top_k <= per_group * self.topk_groups,
            f"top_k={self.top_k} exceeds the {per_group * self.topk_groups} experts of topk_groups={self.topk_groups}.",
        )
        _require(
            self.num_zero_experts < num_experts,
            f"num_zero_experts={self.num_zero_experts} must be < num_experts={num_experts}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSpec:
    """What one expert computes from its token: W2 f(W1 x + b1) + b2.

    gated: w13 has 2I rows, gate g and up u, and f = act(g) * u; otherwise w13 has I rows and f = act(g).
    gate_up_layout: `halves` is g rows first, then u rows; `up_first` the other way; `interleaved` is g, u, g, u;
    `interleaved_8` and `_16` alternate so many of each (moecheck.gate_up). It speaks of the arrays beside the spec.
    activation: silu(g) = g * sigmoid(alpha * g) with alpha = swiglu_alpha, gelu (erf), gelu_tanh, relu2 = max(g,
    0)^2, situ. The gated product uses u + swiglu_beta. swiglu_limit L with limit_position `before`: g <- min(g, L),
    u <- clip(u, -L, L) ahead of the activation; `after`: min(act(g), L) * clip(u, -L, L). situ: beta tanh(g / beta)
    sigmoid(g) with beta = situ_beta; with situ_up_beta also u <- situ_up_beta tanh(u / situ_up_beta).
    weight_on_input: the routing weight multiplies the expert's input instead of its output (top_k = 1 only).
    quantization: how w13 and w2 are stored, None for plain numbers. A mapping of its fields stands for one.
    """

    activation: Activation = "silu"
    gated: bool = True
    gate_up_layout: GateUpLayout = "halves"
    swiglu_alpha: float = 1.0
    swiglu_beta: float = 0.0
    swiglu_limit: float | None = None
    limit_position: LimitPosition = "before"
    situ_beta: float = 1.0
    weight_on_input: bool = False
    w13_bias: bool = False
    w2_bias: bool = False
    situ_up_beta: float | None = field(default=None, metadata=LATER)
    quantization: Quantization | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if isinstance(self.quantization, Mapping):  # as JSON has it
            object.__setattr__(self, "quantization", _build(Quantization, self.quantization))
        _check_fields(self)
        _require(
            self.swiglu_limit is None or self.swiglu_limit > 0, f"swiglu_limit={self.swiglu_limit} must be positive."
        )
        _require(
            self.activation == "silu" or self.swiglu_alpha == 1.0,
            f"swiglu_alpha={self.swiglu_alpha} needs activation='silu', not {self.activation!r}.",
        )
        _require(self.situ_beta > 0, f"situ_beta={self.situ_beta} must be positive.")
        _require(
            self.situ_up_beta is None or (self.situ_up_beta > 0 and self.activation == "situ" and self.gated),
            f"situ_up_beta={self.situ_up_beta} must be positive, and needs activation='situ' and gated=True.",
        )

    @property
    def changes_up(self) -> bool:
        """Whether the product's second factor is computed from u, beyond a clamp, which rounds nothing."""
        return self.swiglu_beta != 0.0 or self.situ_up_beta is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoESpec:
    """A whole layer: y = routed(x) [+ shared(x), times sigmoid(x . shared_gate) if `gated`].

    shared_spec: what the shared experts compute, None for the same as the routed ones; their biases are not known.
    latent_experts: the routed experts work on a narrower h = latent_down x, and routed(x) = latent_up (their sum), with
    the router and the shared experts on x itself (Nemotron-3-Super). sum_factor: y is multiplied by it at the end, such
    as 1/sqrt(2) where a dense MLP runs beside the experts (Grok-2), 1/2 for an average (Cohere2-MoE).
    """

    routing: RoutingSpec = field(default_factory=RoutingSpec)
    experts: ExpertSpec = field(default_factory=ExpertSpec)
    shared_experts: SharedExperts = "none"
    shared_spec: ExpertSpec | None = field(default=None, metadata=LATER)
    latent_experts: bool = field(default=False, metadata=LATER)
    sum_factor: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        _check_fields(self)
        _require(
            not self.experts.weight_on_input or self.routing.top_k == 1,
            f"weight_on_input=True needs top_k=1, not {self.routing.top_k}.",
        )
        _require(self.sum_factor > 0, f"sum_factor={self.sum_factor} must be positive.")
        _require(
            self.shared_spec is None or self.shared_experts != "none",
            "shared_spec says what shared experts compute, and shared_experts='none'.",
        )
        _require(
            not self.latent_experts or not (self.routing.num_zero_experts or self.routing.num_fused_shared_experts),
            "latent_experts=True cannot hold identity or fused shared experts, which are as wide as x.",
        )

    @property
    def shared(self) -> ExpertSpec:
        """What the shared experts compute."""
        return self.experts if self.shared_spec is None else self.shared_spec

    def to_json(self) -> dict[str, Any]:
        """Plain data: nested dictionaries of JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MoESpec:
        """The inverse of `to_json`; raises SpecError for an unknown field or a bad value."""
        if not isinstance(data, Mapping):
            raise SpecError(f"A spec must be a JSON object, not {type(data).__name__}.")
        known = {"routing": RoutingSpec, "experts": ExpertSpec, "shared_spec": ExpertSpec}
        values = {
            name: _build(known[name], value) if name in known and value is not None else value
            for name, value in data.items()
        }
        spec = _build(cls, values)
        assert isinstance(spec, MoESpec)
        return spec


def identity(record: Any) -> dict[str, Any]:
    """A record's fields as plain nested data, without those marked LATER that are at their default."""
    values = {f.name: getattr(record, f.name) for f in fields(record) if not _left_out(f, getattr(record, f.name))}
    return {name: identity(value) if is_dataclass(value) else value for name, value in values.items()}


def _left_out(f: Field[Any], value: object) -> bool:
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    return bool(f.metadata.get("later")) and value == default


def _build(cls: type, data: Any) -> object:
    if not isinstance(data, Mapping):
        raise SpecError(f"{cls.__name__} must be a JSON object, not {type(data).__name__}.")
    names = [f.name for f in fields(cls)]
    for name in data:
        if name not in names:
            raise SpecError(f"{cls.__name__} has no field {name!r}.{near(name, names)}")
    try:
        return cls(**data)
    except TypeError as error:
        raise SpecError(f"{cls.__name__}: {error}.") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _check_fields(record: RoutingSpec | ExpertSpec | MoESpec) -> None:
    """Each field against its annotation: records come from JSON, where "false" is as easily written as false."""
    hints = _hints(record.__class__)  # type: ignore[arg-type]  # classes are hashable, typeshed has not heard
    for f in fields(record):
        hint, value = hints[f.name], getattr(record, f.name)
        if hint in _LITERALS:
            allowed = get_args(hint)
            _require(value in allowed, f"{f.name}={value!r} must be one of {', '.join(map(repr, allowed))}.")
        elif hint is bool:
            _require(isinstance(value, bool), f"{f.name}={value!r} must be true or false.")
        elif hint is int:
            _require(_is_number(value) and isinstance(value, int), f"{f.name}={value!r} must be an integer.")
        elif hint is float or (hint == float | None and value is not None):
            _require(_is_finite(value), f"{f.name}={value!r} must be a finite number.")
        elif hint in (RoutingSpec, ExpertSpec):
            _require(isinstance(value, hint), f"{f.name}={value!r} must be a {hint.__name__}.")
        elif hint == Quantization | None:
            _require(value is None or isinstance(value, Quantization), f"{f.name}={value!r} must be a Quantization.")
        elif hint == ExpertSpec | None:
            _require(value is None or isinstance(value, ExpertSpec), f"{f.name}={value!r} must be an ExpertSpec.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    """Whether a number is finite as a float: an integer may be too large for one."""
    return isinstance(value, int | float) and _is_number(value) and abs(value) <= sys.float_info.max


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


_LITERALS = (
    Scoring,
    GroupScore,
    GroupMask,
    BiasUse,
    EpsRule,
    ScalingPlacement,
    Selection,
    Activation,
    GateUpLayout,
    LimitPosition,
    SharedExperts,
)

# GPT-OSS's expert.
SWIGLUOAI = ExpertSpec(
    gate_up_layout="interleaved", swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0, w13_bias=True, w2_bias=True
)
