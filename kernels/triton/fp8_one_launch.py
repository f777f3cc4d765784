"""Experts of block-quantised fp8 weights in one launch: up-projection, activation, requantisation, down-projection."""

from __future__ import annotations

import torch

import moecheck
from moecheck.quantization import SCHEMES

from ._one_launch import TUNING, one_launch
from ._quantised_launch import BLOCK

# Everything between the two roundings to fp8 stays in fp32: h is stored so, and the sum over experts is rounded once.
NUMERICS = moecheck.Numerics(a1_quant=moecheck.Quantizer(group=BLOCK), a2_quant=moecheck.Quantizer(group=BLOCK))


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/fp8_one_launch",
    numerics=NUMERICS,
    quantizations=(SCHEMES["fp8-block"],),
    tuning=TUNING,
)
def fp8_one_launch(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Experts add to a token's sum in fp32 as they come, so that last bits may differ from call to call.

    hidden_states: [T, H]. w13: [L, 2I, H] fp8. w2: [L, H, I] fp8. w13_scale, w2_scale: float32, blocks of 128 x 128.
    topk_weights: [T, top_k] float32. topk_ids: [T, top_k] int32. expert_map: [E] int32, global to local id. Returns
    [T, H].
    """
    first, second = (w13, w13_scale), (w2, w2_scale)
    return one_launch(hidden_states, first, second, topk_weights, topk_ids, expert_map, spec, ordered=False)


@moecheck.kernel(
    "fused_experts",
    backend="triton",
    name="triton/fp8_one_launch_ordered",
    numerics=NUMERICS,
    deterministic=True,
    quantizations=(SCHEMES["fp8-block"],),
    weight_layout=moecheck.WeightLayout(gate_up="interleaved_8"),
    tuning=TUNING,
)
def fp8_one_launch_ordered(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """The same with experts added in the order of the slots, of weights as the CUDA kernel has them: 8 rows of gates,
    8 of ups, their scales in turns. Arguments as above; I is a multiple of 128.
    """
    first, second = (w13, w13_scale), (w2, w2_scale)
    return one_launch(
        hidden_states, first, second, topk_weights, topk_ids, expert_map, spec, ordered=True, scales_in_turns=True
    )
