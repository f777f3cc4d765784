"""Experts whose weights and inputs are both mxfp4: e2m1 codes in groups of 32 with powers of two as scales."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT
from moecheck.quantization import SCHEMES
from moecheck.quantizer import NO_EPS
from torch.nn import functional

from ._quantised import experts
from .index_add import local_ids
from .weight_only import E2M1, e2m1_times_powers

GROUP = 32
LARGEST_POWER = 2  # of e2m1: 4 = 2^2
MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/mxfp4_both",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        per_expert=INPUT,
        a1_quant=moecheck.Quantizer(format="fp4_e2m1", group=GROUP, scale="floor", eps=NO_EPS),
        a2_quant=moecheck.Quantizer(format="fp4_e2m1", group=GROUP, scale="floor", eps=NO_EPS),
    ),
    dtypes=("bf16",),
    deterministic=True,
    quantizations=(SCHEMES["mxfp4"],),
)
def mxfp4_both(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Weights as in weight_only.mxfp4; inputs of both GEMMs by the rule of OCP MX (w4a4). Arguments as there."""

    def gemm(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return functional.linear(rounded_to_mxfp4(x), e2m1_times_powers(w, scale))

    return experts(
        hidden_states,
        topk_weights,
        local_ids(topk_ids, expert_map),
        spec,
        first=lambda x, e: gemm(x, w13[e], w13_scale[e]),
        second=lambda h, e: gemm(h, w2[e], w2_scale[e]),
        w13_bias=w13_bias,
        w2_bias=w2_bias,
    )


def rounded_to_mxfp4(x: torch.Tensor) -> torch.Tensor:
    """The numbers that codes and scales of x stand for, [rows, K] float32.

    A scale is 2^(floor(log2 amax) - 2), by the exponent's bits; numbers beyond 6 of it saturate; ties go to even codes.
    """
    rows, width = x.shape
    tiles = functional.pad(x.float(), (0, -width % GROUP)).reshape(rows, -1, GROUP)
    amax = tiles.abs().amax(dim=-1, keepdim=True)
    exponent = (amax.contiguous().view(torch.int32) >> 23) - 127 - LARGEST_POWER
    scale = torch.ldexp(torch.ones_like(amax), exponent.clamp(min=-126))
    size = (tiles / scale).abs()
    above = torch.tensor(MIDPOINTS, dtype=torch.float32, device=x.device)
    code = (size[..., None] > above).sum(dim=-1)
    code += ((size[..., None] == above).any(dim=-1) & (code % 2 == 1)).long()  # a tie above an odd code goes up
    values = torch.tensor(E2M1[:8], dtype=torch.float32, device=x.device)[code]
    return (values.copysign(tiles) * scale).reshape(rows, -1)[:, :width]
