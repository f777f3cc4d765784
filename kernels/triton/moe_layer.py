"""A whole layer in Triton whose shared experts are slots of the grouped GEMMs."""

from __future__ import annotations

from dataclasses import replace

import torch

import moecheck
import triton
from moecheck.numerics import INPUT

from .experts import fused_gate_up
from .routing import topk_routing


@moecheck.kernel(
    "moe_layer",
    backend="triton",
    name="triton/fused_shared",
    numerics=moecheck.Numerics(act_times_up=INPUT, weighted=INPUT),
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
    shared_w13: torch.Tensor | None = None,
    shared_w2: torch.Tensor | None = None,
    shared_gate: torch.Tensor | None = None,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """The fused gate, with a slot for each shared expert, and the fused experts over all slots.

    hidden_states: [T, H]. router_logits: [T, E]. w13: [E', 2I, H]. w2: [E', H, I], the fused shared experts last.
    shared_w13: [2S, H]. shared_w2: [H, S], appended here as ceil(S / I) more experts, which an engine does once, as it
    loads weights. shared_gate: [H]. Biases and scales as in fused_gate_up and topk_routing. Returns [T, H].

    The factor is inside the routed weights wherever the spec has it, so that a shared slot weighs exactly 1, or one
    part of as many as there are ranks that add it.
    """
    _check(spec)
    routing = replace(spec.routing, scaling_placement="topk_weights")
    if spec.shared_experts != "none":
        if shared_w13 is None or shared_w2 is None:
            raise moecheck.Unsupported("the spec has shared experts, but shared_w13 or shared_w2 was not given")
        extra13, extra2 = shared_slots(shared_w13, shared_w2, w13.shape[1] // 2, spec.experts.gate_up_layout)
        routing = replace(routing, num_fused_shared_experts=len(extra13))
        w13, w2 = torch.cat([w13, extra13]), torch.cat([w2, extra2])
        w13_bias, w2_bias = (_with_zeros(bias, len(extra13)) for bias in (w13_bias, w2_bias))
    weights, ids = topk_routing(
        router_logits=router_logits, correction_bias=correction_bias, per_expert_scale=per_expert_scale, spec=routing
    )
    if spec.shared_experts == "gated":
        if shared_gate is None:
            raise moecheck.Unsupported("the spec gates its shared experts, but shared_gate was not given")
        gate = (hidden_states.float() @ shared_gate.float()).sigmoid()
        weights[:, routing.top_k :] = gate[:, None]
    if spec.sum_factor != 1.0:
        weights = weights * spec.sum_factor
    return fused_gate_up(
        hidden_states=hidden_states,
        w13=w13,
        w2=w2,
        topk_weights=weights,
        topk_ids=ids,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        spec=spec.experts,
    )


def shared_slots(
    shared_w13: torch.Tensor, shared_w2: torch.Tensor, intermediate_size: int, gate_up_layout: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shared experts as n = ceil(S / I) experts of width I whose outputs add up to theirs: [n, 2I, H] and [n, H, I].

    shared_w13: [2S, H], as gate_up_layout says. shared_w2: [H, S]. What is missing of the last expert is zero, which
    adds act(0) (0 + beta) = 0.
    """
    hidden, width = shared_w2.shape
    count = triton.cdiv(width, intermediate_size)
    missing = count * intermediate_size - width
    parts = (width, 2) if gate_up_layout == "interleaved" else (2, width)
    padding = (0, 0, 0, 0, 0, missing) if gate_up_layout == "interleaved" else (0, 0, 0, missing)
    rows = torch.nn.functional.pad(shared_w13.view(*parts, hidden), padding)
    if gate_up_layout != "interleaved":
        rows = rows.view(2, count, intermediate_size, hidden).transpose(0, 1)
    columns = torch.nn.functional.pad(shared_w2, (0, missing)).view(hidden, count, intermediate_size)
    return rows.reshape(count, 2 * intermediate_size, hidden), columns.transpose(0, 1).contiguous()


def _with_zeros(bias: torch.Tensor | None, count: int) -> torch.Tensor | None:
    """Biases with those of `count` more experts, which have none."""
    return None if bias is None else torch.cat([bias, bias.new_zeros(count, bias.shape[1])])


def _check(spec: moecheck.MoESpec) -> None:
    if spec.experts.weight_on_input:
        raise moecheck.Unsupported("weighs the experts' outputs, whose factor a weight can hold, not their inputs")
    if spec.latent_experts or spec.routing.num_zero_experts:
        raise moecheck.Unsupported("implements neither latent nor identity experts")
    if spec.shared_experts != "none" and spec.shared != spec.experts and not _differ_by_biases(spec):
        raise moecheck.Unsupported("computes shared experts as the routed ones, and the spec has another kind")
    if spec.shared_experts != "none" and spec.routing.num_fused_shared_experts:
        raise moecheck.Unsupported("has shared experts either among the routed ones or beside them, not both")


def _differ_by_biases(spec: moecheck.MoESpec) -> bool:
    """Whether the shared experts are the routed ones but for biases, of which shared experts have none anyway."""
    plain = {"w13_bias": False, "w2_bias": False}
    return replace(spec.shared, **plain) == replace(spec.experts, **plain)
