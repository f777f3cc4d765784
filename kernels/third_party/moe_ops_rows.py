"""moe-ops 0.1: a router, permute, unpermute and grouped GEMM in Triton."""

from __future__ import annotations

from importlib import import_module

import torch

import moecheck

from ._require import Routed, require, require_fields, require_ids

require("moe_ops", install="moe-ops")
MOE_OPS = import_module("moe_ops")
LIBRARY = "moe-ops"


@moecheck.kernel(
    "topk_routing",
    backend="triton",
    name="moe_ops/fused_topk_softmax",
    specs=(moecheck.MoESpec(routing=moecheck.RoutingSpec(top_k=6, softmax_over_selected=True)),),
    numerics=moecheck.Numerics(out="fp32"),
    deterministic=True,
)
def fused_topk_softmax(*, router_logits: torch.Tensor, spec: moecheck.RoutingSpec) -> Routed:
    """The largest logits, then their softmax, in fp32. router_logits: [T, E]. Returns weights and ids [T, top_k]."""
    require_fields(
        spec,
        LIBRARY,
        scoring=("softmax",),
        softmax_over_selected=(True,),
        softcap=(None,),
        correction_bias=("none",),
        num_expert_groups=(1,),
        renormalize=(False,),
        routed_scaling_factor=(1.0,),
        num_fused_shared_experts=(0,),
        per_expert_scale=(False,),
        selection=("topk",),
    )
    weights, ids = MOE_OPS.fused_topk_softmax(router_logits.contiguous(), spec.top_k, fp32_routing=True)
    return weights, ids


@moecheck.kernel("permute", backend="triton", name="moe_ops/permute")
def permute(
    *, hidden_states: torch.Tensor, topk_ids: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, None, torch.Tensor, torch.Tensor]:
    """Rows by a counting sort with atomics. hidden_states: [T, H]. topk_ids: [T, top_k] int32."""
    require_ids(topk_ids, LIBRARY)
    if num_experts & (num_experts - 1):
        raise moecheck.Unsupported(f"moe-ops counts experts in a power of two, not {num_experts}")
    permuted, row_id_map, starts = MOE_OPS.permute(hidden_states, topk_ids, E=num_experts)
    return permuted, None, starts, row_id_map.view(topk_ids.shape[::-1]).T.contiguous()


@moecheck.kernel("unpermute", backend="triton", name="moe_ops/unpermute", numerics=moecheck.Numerics())
def unpermute(*, permuted: torch.Tensor, topk_weights: torch.Tensor, inv_permuted_idx: torch.Tensor) -> torch.Tensor:
    """Each token's rows, weighted and added in fp32. Shapes as in unpermute."""
    require_ids(inv_permuted_idx, LIBRARY)
    tokens, top_k = inv_permuted_idx.shape
    row_id_map = inv_permuted_idx.T.contiguous().flatten()
    out: torch.Tensor = MOE_OPS.unpermute(permuted, row_id_map, topk_weights, tokens, top_k)
    return out


@moecheck.kernel(
    "grouped_gemm", backend="triton", name="moe_ops/grouped_gemm", dtypes=("bf16", "fp16"), numerics=moecheck.Numerics()
)
def grouped_gemm(*, x: torch.Tensor, w: torch.Tensor, expert_ends: torch.Tensor) -> torch.Tensor:
    """y[g] = x[g] w[g]^T, by TMA on Hopper. x: [R, k]. w: [E, n, k]. expert_ends: [E] int32."""
    for name, width in (("k", w.shape[2]), ("n", w.shape[1])):
        if width * w.element_size() % 16:
            raise moecheck.Unsupported(f"moe-ops' descriptors take rows of a multiple of 16 bytes, {name}={width}")
    y: torch.Tensor = MOE_OPS.grouped_gemm(x, w, expert_ends)
    return y.masked_fill((torch.arange(len(y), device=y.device) >= expert_ends[-1])[:, None], 0)
