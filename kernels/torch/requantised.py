"""Experts that requantise activations to fp8 before a GEMM, in PyTorch; weights stay in their own format."""

from __future__ import annotations

import moecheck
import torch
from torch.nn import functional

from .activation import act_and_mul
from .index_add import local_ids

GROUP = 128
LARGEST = 448.0  # of e4m3
LEAST_AMAX = 1e-10


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/fp8_requantised",
    numerics=moecheck.Numerics(a2_quant=moecheck.Quantizer(group=GROUP)),
    deterministic=True,
)
def fp8_requantised(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Act(g) * u requantised to e4m3 in groups of 128 with float scales.

    hidden_states: [T, H]. w13: [L, 2I or I, H]. w2: [L, H, I]. topk_weights: [T, top_k] float32.
    topk_ids: [T, top_k] int32. expert_map: [E] int32, global to local id. Returns [T, H].
    """
    return _experts(
        hidden_states, w13, w2, topk_weights, local_ids(topk_ids, expert_map), spec, before=0, between=GROUP
    )


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/fp8_requantised_per_token",
    dtypes=("bf16",),
    numerics=moecheck.Numerics(a1_quant=moecheck.Quantizer(), a2_quant=moecheck.Quantizer()),
    deterministic=True,
)
def fp8_requantised_per_token(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Hidden states and act(g) * u requantised to e4m3, one float scale a row. Arguments as above."""
    width = hidden_states.shape[1]
    ids = local_ids(topk_ids, expert_map)
    return _experts(hidden_states, w13, w2, topk_weights, ids, spec, before=width, between=w2.shape[2])


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/fp8_requantised_ue8m0",
    dtypes=("bf16",),
    numerics=moecheck.Numerics(
        gate_up="input", act_times_up="input", a2_quant=moecheck.Quantizer(group=GROUP, scale="power_of_two")
    ),
    deterministic=True,
)
def fp8_requantised_ue8m0(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Act(g) * u, stored, requantised to e4m3 in groups of 128 with powers of two as scales. Arguments as above."""
    ids = local_ids(topk_ids, expert_map)
    return _experts(
        hidden_states, w13, w2, topk_weights, ids, spec, before=0, between=GROUP, power_of_two=True, stored=True
    )


def requantise(x: torch.Tensor, group: int, *, power_of_two: bool = False) -> torch.Tensor:
    """Round each group of columns to e4m3 by a scale of its own; the values that the codes stand for.

    x: [rows, K] float32. group: columns that share a scale, the last group may be shorter. Returns [rows, K] float32.
    """
    rows, width = x.shape
    tiles = functional.pad(x, (0, -width % max(group, 1))).reshape(rows, -1, max(group, 1))
    amax = tiles.abs().amax(dim=-1, keepdim=True).clamp(min=LEAST_AMAX)
    scale = amax / torch.full_like(amax, LARGEST)  # by a number, CUDA multiplies with its rounded reciprocal
    if power_of_two:
        scale = _rounded_up(scale)
    codes = (tiles / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return (codes.float() * scale).reshape(rows, -1)[:, :width]


def _rounded_up(scale: torch.Tensor) -> torch.Tensor:
    """The next power of two, by the bits of a positive float32: the significand is dropped, carrying if it is not 0."""
    bits = scale.contiguous().view(torch.int32)
    return ((bits + 0x007FFFFF) & 0x7F800000).view(torch.float32)


def _experts(
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
    *,
    before: int,
    between: int,
    power_of_two: bool = False,
    stored: bool = False,
) -> torch.Tensor:
    """The weighted sum of each token's experts, all in fp32 but for the quantisers and, if `stored`, two stores.

    before, between: group of the quantiser in front of each GEMM, 0 for none. ids: [T, top_k] local, -1 for none.
    """
    if spec.w13_bias or spec.w2_bias:
        raise moecheck.Unsupported("biases are not added here")
    out = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
    for expert in torch.unique(ids[ids >= 0]).tolist():
        token, slot = torch.where(ids == expert)
        weight = topk_weights[token, slot, None].float()
        rows = hidden_states[token].float()
        if spec.weight_on_input:
            rows = rows * weight
        if before:
            rows = requantise(rows, before)
        gate_up = functional.linear(rows, w13[expert].float())
        h = act_and_mul(x=gate_up.to(w13.dtype) if stored else gate_up, spec=spec).float()
        h = requantise(h, between, power_of_two=power_of_two)
        y = functional.linear(h, w2[expert].float())
        out.index_add_(0, token, y if spec.weight_on_input else y * weight)
    return out.to(hidden_states.dtype)
