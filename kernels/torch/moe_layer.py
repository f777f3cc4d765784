"""A whole layer in PyTorch: routing, experts by index_add, shared experts, each share of the sum stored once."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT
from torch.nn import functional

from .index_add import feed_forward, fused_experts
from .routing import scaling_factor, topk_routing


@moecheck.kernel(
    "moe_layer",
    backend="torch",
    name="torch/moe_layer",
    numerics=moecheck.Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    deterministic=True,
)
def moe_layer(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    correction_bias: torch.Tensor | None = None,
    per_expert_scale: torch.Tensor | None = None,
    token_ids: torch.Tensor | None = None,
    tid2eid: torch.Tensor | None = None,
    shared_w13: torch.Tensor | None = None,
    shared_w2: torch.Tensor | None = None,
    shared_gate: torch.Tensor | None = None,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    latent_down: torch.Tensor | None = None,
    latent_up: torch.Tensor | None = None,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """routed(x) + shared(x), any RoutingSpec and ExpertSpec; identity, fused shared and gated shared experts included.

    hidden_states: [T, H]. router_logits: [T, E]. w13: [E', 2I or I, X]. w2: [E', X, I]; E' leaves out the identity
    experts and ends with the fused shared ones. latent_down: [X, H], latent_up: [H, X]; without them X is H.
    shared_w13: [2S or S, H]. shared_w2: [H, S]. shared_gate: [H]. Biases and scales as in fused_experts and
    topk_routing. Returns [T, H].
    """
    weights, ids = topk_routing(
        router_logits=router_logits,
        correction_bias=correction_bias,
        per_expert_scale=per_expert_scale,
        token_ids=token_ids,
        tid2eid=tid2eid,
        spec=spec.routing,
    )
    identity, rows = _weight_rows(ids, router_logits.shape[1], spec.routing.num_zero_experts)
    out = fused_experts(
        hidden_states=hidden_states if latent_down is None else functional.linear(hidden_states, latent_down),
        w13=w13,
        w2=w2,
        topk_weights=weights,
        topk_ids=rows,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        spec=spec.experts,
    )
    if latent_up is not None:
        out = functional.linear(out, latent_up)
    if spec.routing.num_zero_experts:
        out = out + (hidden_states * (weights * identity).sum(dim=1, keepdim=True)).to(out.dtype)
    if spec.routing.scaling_placement != "topk_weights":
        out = out * scaling_factor(spec.routing)
    if spec.shared_experts != "none":
        out = out + _shared_output(hidden_states, shared_w13, shared_w2, shared_gate, spec=spec)
    return out if spec.sum_factor == 1.0 else out * spec.sum_factor


def _weight_rows(ids: torch.Tensor, num_experts: int, num_zero_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which slots are identity experts, and the row of w13 for the others (-1 for identity): [T, slots] each."""
    identity = (ids >= num_experts - num_zero_experts) & (ids < num_experts)
    rows = torch.where(ids >= num_experts, ids - num_zero_experts, ids)
    return identity, rows.masked_fill(identity, -1)


def _shared_output(
    hidden_states: torch.Tensor,
    shared_w13: torch.Tensor | None,
    shared_w2: torch.Tensor | None,
    shared_gate: torch.Tensor | None,
    *,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """The shared experts' share of the output: [T, H]."""
    if shared_w13 is None or shared_w2 is None:
        raise moecheck.Unsupported("the spec has shared experts, but shared_w13 or shared_w2 was not given")
    shared = feed_forward(hidden_states, w13=shared_w13, w2=shared_w2, spec=spec.shared)
    if spec.shared_experts == "ungated":
        return shared
    if shared_gate is None:
        raise moecheck.Unsupported("the spec gates its shared experts, but shared_gate was not given")
    gate = functional.linear(hidden_states, shared_gate[None]).float().sigmoid()
    return (shared * gate).to(shared.dtype)
