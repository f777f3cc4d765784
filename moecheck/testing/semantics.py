"""The spec of a layer from the part of it that an op reads, and from which arrays are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecheck.errors import UsageError
from moecheck.ops import OPS
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec

from .names import refuse_quantised

AnySpec = MoESpec | ExpertSpec | RoutingSpec


def layer_spec(op: str, spec: AnySpec | None, arrays: Mapping[str, Any]) -> MoESpec:
    """The whole layer's spec; UsageError where it contradicts the arrays, or is not given to an op that routes.

    Experts have the biases that are given. Where ids are given, the routing is reduced to their number of slots.
    """
    check_spec(spec)
    experts = spec if isinstance(spec, ExpertSpec) else spec.experts if isinstance(spec, MoESpec) else ExpertSpec()
    if experts.quantization is not None:
        refuse_quantised("spec.quantization")
    experts = _with_biases(experts, arrays)
    if "router_logits" not in arrays:
        return MoESpec(routing=_slots_only(spec, arrays), experts=experts)
    if not isinstance(spec, MoESpec | RoutingSpec):
        raise UsageError(
            f"{op} needs a spec, MoESpec(routing=RoutingSpec(top_k=..., ...)): "
            "the arrays do not tell how tokens choose their experts."
        )
    layer = spec if isinstance(spec, MoESpec) else MoESpec(routing=spec)
    _check_presence(op, layer, arrays)
    if op == "moe_layer":
        return replace(layer, experts=experts)
    return MoESpec(routing=layer.routing, experts=experts)


def check_spec(spec: object) -> None:
    """UsageError for what is no spec; None is allowed."""
    if spec is not None and not isinstance(spec, MoESpec | ExpertSpec | RoutingSpec):
        raise UsageError(f"spec must be a MoESpec, ExpertSpec or RoutingSpec, not {type(spec).__name__}.")


def _with_biases(experts: ExpertSpec, arrays: Mapping[str, Any]) -> ExpertSpec:
    """The spec with a bias wherever one is given; UsageError where the spec has one that is not given."""
    for name in ("w13_bias", "w2_bias"):
        if "w13" in arrays and getattr(experts, name) and name not in arrays:
            raise UsageError(f"{name} is not given, which contradicts spec.experts.{name}=True.")
    return replace(experts, w13_bias="w13_bias" in arrays or "bias" in arrays, w2_bias="w2_bias" in arrays)


def _slots_only(spec: AnySpec | None, arrays: Mapping[str, Any]) -> RoutingSpec:
    """What is left of the routing where its result is given: the number of slots."""
    shapes = [arrays[name].shape for name in ("topk_ids", "inv_permuted_idx") if name in arrays]
    if not shapes or len(shapes[0]) != 2:  # another shape is refused with the axes
        return RoutingSpec(top_k=1)
    slots = shapes[0][1]
    routing = spec.routing if isinstance(spec, MoESpec) else spec if isinstance(spec, RoutingSpec) else RoutingSpec()
    # A routing that was spelled out must agree; the default one comes with a spec that is about the experts.
    if routing != RoutingSpec() and slots not in (routing.top_k, routing.top_k + routing.num_fused_shared_experts):
        raise UsageError(f"The ids have {slots} slots, which contradicts spec.routing.top_k={routing.top_k}.")
    return RoutingSpec(top_k=slots, renormalize=True)


def _check_presence(op: str, layer: MoESpec, arrays: Mapping[str, Any]) -> None:
    """Each array that the spec calls for is there, and no other: an ignored one would judge another layer."""
    routing, shared = layer.routing, layer.shared_experts
    for argument, used, field in (
        ("correction_bias", routing.correction_bias != "none", f"routing.correction_bias={routing.correction_bias!r}"),
        ("per_expert_scale", routing.per_expert_scale, f"routing.per_expert_scale={routing.per_expert_scale}"),
        ("token_ids", routing.selection == "hash", f"routing.selection={routing.selection!r}"),
        ("tid2eid", routing.selection == "hash", f"routing.selection={routing.selection!r}"),
        ("latent_down", layer.latent_experts, f"latent_experts={layer.latent_experts}"),
        ("latent_up", layer.latent_experts, f"latent_experts={layer.latent_experts}"),
        ("shared_w13", shared != "none", f"shared_experts={shared!r}"),
        ("shared_w2", shared != "none", f"shared_experts={shared!r}"),
        ("shared_gate", shared == "gated", f"shared_experts={shared!r}"),
    ):
        if argument in OPS[op].arg_names and used != (argument in arrays):
            stands = "is given" if argument in arrays else "is not given"
            raise UsageError(f"{argument} {stands}, which contradicts spec.{field}.")
