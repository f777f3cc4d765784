"""Routing whose ids and weights travel packed in one integer each, as a fused MoE kernel may take them."""

from __future__ import annotations

import moecheck
import torch

from .routing import topk_routing

LARGEST_ID = (1 << 15) - 1  # the id has the upper 16 bits of a signed integer


@moecheck.kernel(
    "topk_routing",
    backend="torch",
    name="torch/packed_topk_routing",
    numerics=moecheck.Numerics(topk_weights="bf16", out="fp32"),
    deterministic=True,
    tie="lowest_index",
)
def packed_topk_routing(
    *,
    router_logits: torch.Tensor,
    correction_bias: torch.Tensor | None = None,
    per_expert_scale: torch.Tensor | None = None,
    spec: moecheck.RoutingSpec,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As topk_routing, the weights rounded to bf16 on their way. Arguments and results as there."""
    weights, ids = topk_routing(
        router_logits=router_logits, correction_bias=correction_bias, per_expert_scale=per_expert_scale, spec=spec
    )
    return unpack(pack(weights, ids))


def pack(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(id << 16) | the bits of bf16(weight): [T, k] int32. Raises Unsupported for an id of more than 15 bits."""
    if ids.numel() and int(ids.max()) > LARGEST_ID:
        raise moecheck.Unsupported(f"an id must fit 15 bits, and {int(ids.max())} does not")
    bits = weights.to(torch.bfloat16).view(torch.int16).to(torch.int32) & 0xFFFF
    return (ids.to(torch.int32) << 16) | bits


def unpack(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [T, k] float32 and ids [T, k] int32 of packed integers."""
    weights = (packed & 0xFFFF).to(torch.int16).view(torch.bfloat16).float()
    return weights, packed >> 16
