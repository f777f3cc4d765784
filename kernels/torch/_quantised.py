"""What the experts with quantised weights share: the loop over experts, and quantisers of activations."""

from __future__ import annotations

from collections.abc import Callable

import moecheck
import torch
from torch.nn import functional

from .activation import act_and_mul

LEAST_AMAX = 1e-10
# (rows in the activations' dtype, local expert) -> their product with the expert's matrix, float32
Gemm = Callable[[torch.Tensor, int], torch.Tensor]


def experts(
    hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
    *,
    first: Gemm,
    second: Gemm,
    w13_bias: torch.Tensor | None,
    w2_bias: torch.Tensor | None,
) -> torch.Tensor:
    """The weighted sum of each token's experts; outputs of GEMMs and activation are stored in the input's dtype.

    hidden_states: [T, H]. topk_weights: [T, top_k] float32. ids: [T, top_k] local, -1 for none. Returns [T, H].
    """
    if spec.weight_on_input:
        raise moecheck.Unsupported("weighs the experts' outputs, not their inputs")
    dtype = hidden_states.dtype
    out = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
    for expert in torch.unique(ids[ids >= 0]).tolist():
        token, slot = torch.where(ids == expert)
        gate_up = _biased(first(hidden_states[token], expert), w13_bias, expert).to(dtype)
        h = act_and_mul(x=gate_up, spec=spec)
        y = _biased(second(h, expert), w2_bias, expert).to(dtype)
        out.index_add_(0, token, y.float() * topk_weights[token, slot, None])
    return out.to(dtype)


def _biased(y: torch.Tensor, bias: torch.Tensor | None, expert: int) -> torch.Tensor:
    return y if bias is None else y + bias[expert].float()


def quantise_groups(
    x: torch.Tensor, group: int, dtype: torch.dtype, *, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, K] and scales [rows, ceil(K / group)] float32 of rows, each group of columns by its largest value.

    dtype: float8_e4m3fn, float8_e4m3fnuz, float8_e5m2 or int8. power_of_two: scales are rounded up to powers of two.
    """
    rows, width = x.shape
    tiles = functional.pad(x.float(), (0, -width % group)).reshape(rows, -1, group)
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    amax = tiles.abs().amax(dim=-1, keepdim=True).clamp(min=LEAST_AMAX)
    scale = amax / torch.full_like(amax, largest)  # by a number, CUDA multiplies with its rounded reciprocal
    if power_of_two:
        scale = next_power_of_two(scale)
    codes = narrowed(tiles / scale, dtype).reshape(rows, -1)[:, :width]
    return codes, scale[..., 0]


def narrowed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The nearest codes, saturated."""
    if dtype == torch.int8:
        return x.round().clamp(-127, 127).to(torch.int8)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)


def next_power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The least power of two that is not below a positive float32, by its bits: the significand carries if not 0."""
    bits = scale.contiguous().view(torch.int32)
    return ((bits + 0x007FFFFF) & 0x7F800000).view(torch.float32)
