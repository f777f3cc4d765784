"""The expert's activation in PyTorch: one fp32 evaluation, one store."""

from __future__ import annotations

import moecheck
import torch
from moecheck.numerics import INPUT
from torch.nn import functional


@moecheck.kernel(
    "act_and_mul",
    backend="torch",
    name="torch/act_and_mul",
    numerics=moecheck.Numerics(act_times_up=INPUT),
    deterministic=True,
)
def act_and_mul(*, x: torch.Tensor, spec: moecheck.ExpertSpec) -> torch.Tensor:
    """act(gate) * up of each row, or act(x) when the spec is not gated.

    x: [rows, 2I] or [rows, I]. Returns [rows, I] in the dtype of x.
    """
    values = x.float()
    if not spec.gated:
        return _limited_activation(values, spec).to(x.dtype)
    gate, up = _split(values, spec)
    if spec.swiglu_limit is not None:
        up = up.clamp(-spec.swiglu_limit, spec.swiglu_limit)
    if spec.situ_up_beta is not None:
        up = spec.situ_up_beta * torch.tanh(up / spec.situ_up_beta)
    return (_limited_activation(gate, spec) * (up + spec.swiglu_beta)).to(x.dtype)


def _split(values: torch.Tensor, spec: moecheck.ExpertSpec) -> tuple[torch.Tensor, torch.Tensor]:
    if spec.gate_up_layout == "interleaved":
        return values[..., ::2], values[..., 1::2]
    if spec.gate_up_layout in ("interleaved_8", "interleaved_16"):
        block = 8 if spec.gate_up_layout == "interleaved_8" else 16
        if values.shape[-1] % (2 * block):
            raise moecheck.Unsupported(f"blocks of {block} gates and ups need a multiple of {2 * block} columns")
        gate, up = values.reshape(*values.shape[:-1], values.shape[-1] // (2 * block), 2, block).unbind(-2)
        return gate.flatten(-2), up.flatten(-2)
    first, second = values.chunk(2, dim=-1)
    return (second, first) if spec.gate_up_layout == "up_first" else (first, second)


def _limited_activation(gate: torch.Tensor, spec: moecheck.ExpertSpec) -> torch.Tensor:
    if spec.swiglu_limit is None:
        return _activate(gate, spec)
    if spec.limit_position == "before":
        return _activate(gate.clamp(max=spec.swiglu_limit), spec)
    return _activate(gate, spec).clamp(max=spec.swiglu_limit)


def _activate(gate: torch.Tensor, spec: moecheck.ExpertSpec) -> torch.Tensor:
    if spec.activation == "silu":
        return gate * torch.sigmoid(spec.swiglu_alpha * gate)
    if spec.activation == "gelu":
        return functional.gelu(gate)
    if spec.activation == "gelu_tanh":
        return functional.gelu(gate, approximate="tanh")
    if spec.activation == "relu2":
        return functional.relu(gate).square()
    return spec.situ_beta * torch.tanh(gate / spec.situ_beta) * torch.sigmoid(gate)
