"""A whole layer in Triton whose shared experts are slots of the grouped GEMMs."""

from __future__ import annotations

from dataclasses import replace

import torch

import moecheck
import triton
from moecheck.numerics import INPUT

from ._launch import check_spec
from .experts import fused_gate_up
from .routing import scaling_factor, topk_routing


@moecheck.kernel(
    "moe_layer",
    backend="triton",
    name="triton/fused_shared",
    numerics=moecheck.Numerics(act_times_up=INPUT, weighted=INPUT),
    deterministic=True,
)
def fused_shared(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    correction_bias: torch.Tensor | None = None,
    per_expert_scale: torch.Tensor | None = None,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """The fused gate, with a slot for each shared expert among the experts, and the fused experts over all slots.

    hidden_states: [T, H]. router_logits: [T, E]. w13: [E', 2I, H]. w2: [E', H, I], the shared experts last. Biases and
    scales as in fused_gate_up and topk_routing. Returns [T, H].
    """
    if spec.shared_experts != "none":
        raise moecheck.Unsupported("takes shared experts among the routed ones, with which they are added and stored")
    _check(spec)
    weights, ids = topk_routing(
        router_logits=router_logits,
        correction_bias=correction_bias,
        per_expert_scale=per_expert_scale,
        spec=spec.routing,
    )
    out = fused_gate_up(
        hidden_states=hidden_states,
        w13=w13,
        w2=w2,
        topk_weights=weights,
        topk_ids=ids,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        spec=spec.experts,
    )
    if spec.routing.scaling_placement != "topk_weights" and scaling_factor(spec.routing) != 1.0:
        out = out * scaling_factor(spec.routing)
    return out if spec.sum_factor == 1.0 else out * spec.sum_factor


@moecheck.kernel("moe_layer", backend="triton", name="triton/appended_shared", deterministic=True)
def appended_shared(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    shared_w13: torch.Tensor,
    shared_w2: torch.Tensor,
    shared_gate: torch.Tensor | None = None,
    correction_bias: torch.Tensor | None = None,
    per_expert_scale: torch.Tensor | None = None,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """A layer with shared experts beside the routed ones, which are appended to them as slots.

    shared_w13: [2S, H]. shared_w2: [H, S], ceil(S / I) more experts (an engine appends them once, as it loads weights).
    shared_gate: [H], whose sigmoid is then their slots' weight. Else as fused_shared. The factor is inside the routed
    weights wherever the spec has it: a shared slot weighs exactly 1. No contract is declared, because routed and shared
    outputs are added and stored once, where a layer that computes them apart stores both.
    """
    if spec.shared_experts == "none" or spec.routing.num_fused_shared_experts:
        raise moecheck.Unsupported("takes shared experts beside the routed ones")
    if spec.shared != spec.experts and not _differ_by_biases(spec):
        raise moecheck.Unsupported("computes shared experts as the routed ones, and the spec has another kind")
    _check(spec)
    extra13, extra2 = shared_slots(shared_w13, shared_w2, w13.shape[1] // 2, spec.experts.gate_up_layout)
    routing = replace(spec.routing, scaling_placement="topk_weights", num_fused_shared_experts=len(extra13))
    weights, ids = topk_routing(
        router_logits=router_logits, correction_bias=correction_bias, per_expert_scale=per_expert_scale, spec=routing
    )
    if spec.shared_experts == "gated":
        if shared_gate is None:
            raise moecheck.Unsupported("the spec gates its shared experts, but shared_gate was not given")
        weights[:, routing.top_k :] = (hidden_states.float() @ shared_gate.float()).sigmoid()[:, None]
    return fused_gate_up(
        hidden_states=hidden_states,
        w13=torch.cat([w13, extra13]),
        w2=torch.cat([w2, extra2]),
        topk_weights=weights if spec.sum_factor == 1.0 else weights * spec.sum_factor,
        topk_ids=ids,
        w13_bias=_with_zeros(w13_bias, len(extra13)),
        w2_bias=_with_zeros(w2_bias, len(extra13)),
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
    check_spec(spec.experts)
    if spec.experts.weight_on_input:
        raise moecheck.Unsupported("weighs the experts' outputs, whose factor a weight can hold, not their inputs")
    if spec.latent_experts or spec.routing.num_zero_experts:
        raise moecheck.Unsupported("implements neither latent nor identity experts")


def _differ_by_biases(spec: moecheck.MoESpec) -> bool:
    """Whether the shared experts are the routed ones but for biases, of which shared experts have none anyway."""
    shared, routed = (replace(one, w13_bias=False, w2_bias=False) for one in (spec.shared, spec.experts))
    return shared == routed
