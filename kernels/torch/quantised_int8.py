"""Experts whose inputs are quantised to int8, with weights of int8 or of int4."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT
from moecheck.quantization import SCHEMES
from torch.nn import functional

from ._quantised import experts, quantise_groups
from .index_add import local_ids
from .weight_only import int4_matrix

GROUP = 128


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/int8_channel",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        per_expert=INPUT,
        a1_quant=moecheck.Quantizer(format="int8"),
        a2_quant=moecheck.Quantizer(format="int8"),
    ),
    deterministic=True,
    quantizations=(SCHEMES["int8-channel"],),
)
def int8_channel(
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
    """A scale for each token and for each output channel (w8a8).

    hidden_states: [T, H]. w13: [L, 2I or I, H] int8. w2: [L, H, I] int8. w13_scale, w2_scale: [L, N, 1] float32.
    topk_weights: [T, top_k] float32. topk_ids: [T, top_k] int32. w13_bias: [L, 2I or I]. w2_bias: [L, H].
    expert_map: [E] int32, global to local id. Returns [T, H].
    """

    def gemm(x: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
        codes, x_scale = quantise_groups(x, x.shape[1], torch.int8)
        # On CUDA _int_mm asks for more than 16 rows; float64 holds the integers too.
        product = codes.double() @ w.double().T if x.is_cuda else torch._int_mm(codes, w.T)
        return product.float() * (x_scale * w_scale.reshape(1, -1))

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


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/int4_int8",
    numerics=moecheck.Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        per_expert=INPUT,
        a1_quant=moecheck.Quantizer(format="int8"),
        a2_quant=moecheck.Quantizer(format="int8"),
    ),
    dtypes=("bf16",),
    deterministic=True,
    quantizations=(SCHEMES["int4-group128"],),
)
def int4_int8(
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
    """Weights of int4 in groups of 128 as in weight_only.int4_groups, kept in float32; inputs as above (w4a8)."""

    def gemm(x: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
        codes, x_scale = quantise_groups(x, x.shape[1], torch.int8)
        return functional.linear(codes.float(), int4_matrix(w, w_scale, None, GROUP)) * x_scale

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
