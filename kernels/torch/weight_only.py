"""Experts with weights of few bits and plain activations: dequantised, stored, and multiplied."""

from __future__ import annotations

from collections.abc import Callable

import moecheck
import torch
from moecheck.numerics import INPUT
from moecheck.quantization import SCHEMES, Quantization
from torch.nn import functional

from ._quantised import experts
from .index_add import local_ids

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/int4_groups",
    numerics=moecheck.Numerics(dequantised=INPUT, gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    deterministic=True,
    quantizations=tuple(
        SCHEMES[name] for name in ("int4-group128", "int4-group32", "int4-group64-zeros", "int4-channel")
    ),
)
def int4_groups(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w13_zeros: torch.Tensor | None = None,
    w2_zeros: torch.Tensor | None = None,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Weights (q - z) s in groups of columns (w4a16), z = 8 where no zero points are given.

    hidden_states: [T, H]. w13: [L, 2I or I, H / 2] uint8, two codes a byte. w2: [L, H, I / 2] uint8. w13_scale,
    w2_scale: [L, N, groups] in the dtype of hidden_states. w13_zeros, w2_zeros: [L, N, groups] uint8. topk_weights:
    [T, top_k] float32. topk_ids: [T, top_k] int32. w13_bias: [L, 2I or I]. w2_bias: [L, H]. expert_map: [E] int32.
    Returns [T, H].
    """
    group = _quantization(spec).columns

    return _weight_only(
        hidden_states,
        topk_weights,
        local_ids(topk_ids, expert_map),
        spec,
        w13=lambda e: int4_matrix(w13[e], w13_scale[e], None if w13_zeros is None else w13_zeros[e], group),
        w2=lambda e: int4_matrix(w2[e], w2_scale[e], None if w2_zeros is None else w2_zeros[e], group),
        w13_bias=w13_bias,
        w2_bias=w2_bias,
    )


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/mxfp4",
    numerics=moecheck.Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    dtypes=("bf16", "fp32"),
    deterministic=True,
    quantizations=(SCHEMES["mxfp4"],),
)
def mxfp4(
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
    """Weights e2m1 times powers of two, [L, N, groups] uint8, in groups of 32: exact in bf16. Arguments as above."""
    return _weight_only(
        hidden_states,
        topk_weights,
        local_ids(topk_ids, expert_map),
        spec,
        w13=lambda e: e2m1_times_powers(w13[e], w13_scale[e]),
        w2=lambda e: e2m1_times_powers(w2[e], w2_scale[e]),
        w13_bias=w13_bias,
        w2_bias=w2_bias,
    )


@moecheck.kernel(
    "fused_experts",
    backend="torch",
    name="torch/nvfp4",
    numerics=moecheck.Numerics(dequantised=INPUT, gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    dtypes=("bf16",),
    deterministic=True,
    quantizations=(SCHEMES["nvfp4"], SCHEMES["nvfp4-swizzled"]),
)
def nvfp4(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w13_global_scale: torch.Tensor,
    w2_global_scale: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> torch.Tensor:
    """Weights e2m1 times e4m3 in groups of 16 times a number of the expert, [L] float32. Arguments as above.

    Scales lie row by row, or in tiles of 128 x 4.
    """
    swizzled = _quantization(spec).swizzled

    def matrix(w: torch.Tensor, scale: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        codes = _nibbles(w)
        scale = _rows_of_tiles(scale.float()) if swizzled else scale.float()
        return _e2m1(codes) * (_spread(scale, 16, codes.shape[1])[: len(codes)] * whole)

    return _weight_only(
        hidden_states,
        topk_weights,
        local_ids(topk_ids, expert_map),
        spec,
        w13=lambda e: matrix(w13[e], w13_scale[e], w13_global_scale[e]),
        w2=lambda e: matrix(w2[e], w2_scale[e], w2_global_scale[e]),
        w13_bias=w13_bias,
        w2_bias=w2_bias,
    )


def int4_matrix(w: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None, group: int) -> torch.Tensor:
    """(q - z) s, [N, K] float32, of codes [N, K / 2] uint8; group: columns that share s and z, 0 for all."""
    codes = _nibbles(w)
    zero = 8.0 if zeros is None else _spread(zeros, group, codes.shape[1]).float()
    return (codes.float() - zero) * _spread(scale, group, codes.shape[1]).float()


def e2m1_times_powers(w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """[N, K] float32 of mxfp4 codes [N, K / 2] and E8M0 codes [N, ceil(K / 32)], both uint8."""
    codes = _nibbles(w)
    power = torch.ldexp(torch.ones_like(scale, dtype=torch.float32), scale.int() - 127)
    return _e2m1(codes) * _spread(power, 32, codes.shape[1])


def _weight_only(
    hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    ids: torch.Tensor,
    spec: moecheck.ExpertSpec,
    *,
    w13: Callable[[int], torch.Tensor],
    w2: Callable[[int], torch.Tensor],
    w13_bias: torch.Tensor | None,
    w2_bias: torch.Tensor | None,
) -> torch.Tensor:
    """As `experts`, with functions that give an expert's matrix in float32; it is stored in the activations' dtype."""
    dtype = hidden_states.dtype

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.float(), w.to(dtype).float())

    return experts(
        hidden_states,
        topk_weights,
        ids,
        spec,
        first=lambda x, e: product(x, w13(e)),
        second=lambda h, e: product(h, w2(e)),
        w13_bias=w13_bias,
        w2_bias=w2_bias,
    )


def _quantization(spec: moecheck.ExpertSpec) -> Quantization:
    if spec.quantization is None:
        raise moecheck.Unsupported("takes quantised weights only")
    return spec.quantization


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """[N, K / 2] uint8 to [N, K] uint8, the even column from the low half."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def _e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Numbers of 4-bit codes, float32."""
    return torch.tensor(E2M1, dtype=torch.float32, device=codes.device)[codes.long()]


def _spread(each: torch.Tensor, group: int, width: int) -> torch.Tensor:
    """[N, groups] to [N, width], 0 being one group for all."""
    return each.repeat_interleave(group or width, dim=-1)[..., :width]


def _rows_of_tiles(swizzled: torch.Tensor) -> torch.Tensor:
    """Scales [N, G] whose tiles of 128 x 4 lie one behind the other, row by row."""
    rows, columns = swizzled.shape
    tiles = swizzled.reshape(rows // 128, columns // 4, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(rows, columns)
