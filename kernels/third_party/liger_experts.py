"""Liger's fused experts (liger-kernel 0.8): two Triton GEMMs over rows sorted by expert, and a weighted gather."""

from __future__ import annotations

from importlib import import_module

import torch

import moecheck
from moecheck.numerics import INPUT

from ._require import require, require_ids, require_plain_experts

require("liger_kernel", install="liger-kernel")
LIGER = import_module("liger_kernel.ops.fused_moe")


# The first kernel stores gate and up for a backward pass, and computes the activation from its accumulators.
@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="liger/fused_moe",
    dtypes=("bf16", "fp16"),
    numerics=moecheck.Numerics(act_times_up=INPUT, per_expert=INPUT),
)
def fused_moe(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Experts with silu, forward pass only. Shapes as in fused_experts.

    Each new shape is autotuned over 32 configurations of each GEMM; LIGER_FUSED_MOE_AUTOTUNE=0, set before the import,
    pins one.
    """
    require_plain_experts(spec, "Liger", activations=("silu",))
    require_ids(topk_ids, "Liger")
    with torch.no_grad():
        out: torch.Tensor = LIGER.LigerFusedMoEFunction.apply(hidden_states, w13, w2, topk_ids, topk_weights)
    return out
