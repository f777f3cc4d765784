"""Experts, tokens and routes drawn for the tests of references, and torch's view of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  # its name everywhere

from moecheck.formats import AnyArray, Float64, store, to_float64
from moecheck.spec import SWIGLUOAI, ExpertSpec

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SPECS = {
    "silu": ExpertSpec(),
    "silu interleaved": ExpertSpec(gate_up_layout="interleaved"),
    "gelu": ExpertSpec(activation="gelu"),
    "gelu_tanh": ExpertSpec(activation="gelu_tanh"),
    "relu2 without up": ExpertSpec(activation="relu2", gated=False),
    "silu without up": ExpertSpec(gated=False),
    "swigluoai": SWIGLUOAI,
    "clamp before": ExpertSpec(swiglu_limit=1.5),
    "clamp after": ExpertSpec(swiglu_limit=1.5, limit_position="after"),
    "situ": ExpertSpec(activation="situ", situ_beta=2.0),
    "situ of both": ExpertSpec(activation="situ", situ_beta=2.0, situ_up_beta=3.0),
    "gelu without up": ExpertSpec(activation="gelu", gated=False),
    "gelu_tanh without up": ExpertSpec(activation="gelu_tanh", gated=False),
}


class Drawn(NamedTuple):
    """A small problem: arrays as fused_experts takes them."""

    hidden_states: AnyArray
    w13: AnyArray
    w2: AnyArray
    topk_weights: AnyArray
    topk_ids: AnyArray
    w13_bias: AnyArray | None = None
    w2_bias: AnyArray | None = None

    @property
    def kwargs(self) -> dict[str, Any]:
        return self._asdict()


def draw(
    *,
    tokens: int,
    experts: int,
    hidden: int,
    intermediate: int,
    top_k: int,
    spec: ExpertSpec,
    dtype: str = "fp32",
    seed: int = 0,
) -> Drawn:
    """Unit-scale outputs: rms(g), rms(u) about 2, rms(y) about 1 (for a gated silu). Biases where the spec has them."""
    rng = np.random.default_rng(seed)
    rows = (2 if spec.gated else 1) * intermediate
    weights = rng.random((tokens, top_k)).astype(np.float32) + np.float32(0.1)

    def normal(*shape: int, scale: float) -> AnyArray:
        return store(rng.standard_normal(shape) * scale, dtype)

    return Drawn(
        hidden_states=normal(tokens, hidden, scale=1.0),
        w13=normal(experts, rows, hidden, scale=2.0 / np.sqrt(hidden)),
        w2=normal(experts, hidden, intermediate, scale=1.0 / np.sqrt(intermediate)),
        topk_weights=weights / weights.sum(axis=1, keepdims=True),
        topk_ids=np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].astype(np.int32),
        w13_bias=normal(experts, rows, scale=1.0) if spec.w13_bias else None,
        w2_bias=normal(experts, hidden, scale=1.0) if spec.w2_bias else None,
    )


def as_torch(values: AnyArray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(to_float64(values)).to(dtype)


def torch_activation(gate_up: torch.Tensor, spec: ExpertSpec) -> torch.Tensor:
    """Torch's own functions put together as ExpertSpec says, in the dtype of gate_up [n, 2I] or [n, I]."""
    gate, up = gate_up, None
    if spec.gated and spec.gate_up_layout == "interleaved":
        gate, up = gate_up[:, 0::2], gate_up[:, 1::2]
    elif spec.gated:
        gate, up = gate_up.chunk(2, dim=-1)
    limit = spec.swiglu_limit
    if limit is not None and spec.limit_position == "before":
        gate = gate.clamp(max=limit)
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "silu": lambda g: F.silu(g) if spec.swiglu_alpha == 1.0 else g * torch.sigmoid(spec.swiglu_alpha * g),
        "gelu": F.gelu,
        "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"),
        "relu2": lambda g: F.relu(g).square(),
        "situ": lambda g: spec.situ_beta * torch.tanh(g / spec.situ_beta) * torch.sigmoid(g),
    }
    act = functions[spec.activation](gate)
    if limit is not None and spec.limit_position == "after":
        act = act.clamp(max=limit)
    if up is None:
        return act
    up = up if limit is None else up.clamp(-limit, limit)
    if spec.situ_up_beta is not None:
        up = spec.situ_up_beta * torch.tanh(up / spec.situ_up_beta)
    return act * (up + spec.swiglu_beta if spec.swiglu_beta else up)


def torch_token_loop(case: Drawn, spec: ExpertSpec) -> Float64:
    """One token and one slot after the other, in torch float64."""
    d = torch.float64
    out = torch.zeros(case.hidden_states.shape, dtype=d)
    for t, s in np.ndindex(case.topk_ids.shape):
        e, w = int(case.topk_ids[t, s]), float(case.topk_weights[t, s])
        if e < 0:
            continue
        x = as_torch(case.hidden_states[t : t + 1], d)
        gate_up = F.linear(x * w if spec.weight_on_input else x, as_torch(case.w13[e], d))
        if case.w13_bias is not None:
            gate_up = gate_up + as_torch(case.w13_bias[e], d)
        z = F.linear(torch_activation(gate_up, spec), as_torch(case.w2[e], d))
        if case.w2_bias is not None:
            z = z + as_torch(case.w2_bias[e], d)
        out[t] += (z if spec.weight_on_input else w * z)[0]
    return out.numpy()


def torch_eager(case: Drawn, spec: ExpertSpec, dtype: str) -> Float64:
    """An eager loop over experts as in modelling code: every intermediate a tensor of `dtype`, summed by index_add."""
    d = TORCH_DTYPES[dtype]
    x, w13, w2, weights = (as_torch(array, d) for array in case[:4])
    ids = torch.from_numpy(case.topk_ids.astype(np.int64))
    out = torch.zeros_like(x)
    for expert in range(len(w13)):
        tokens, slots = torch.where(ids == expert)
        if len(tokens):
            bias = (None, None) if case.w13_bias is None else (as_torch(case.w13_bias[expert], d), None)
            h = torch_activation(F.linear(x[tokens], w13[expert], bias[0]), spec)
            z = F.linear(h, w2[expert], None if case.w2_bias is None else as_torch(case.w2_bias[expert], d))
            out.index_add_(0, tokens, z * weights[tokens, slots][:, None])
    return out.double().numpy()


def magnitude(case: Drawn, spec: ExpertSpec) -> Float64:
    """What tests.bounds.expert_products_bound calls so: the output with absolute values everywhere, [T, H]."""
    w13, w2 = np.abs(to_float64(case.w13)), np.abs(to_float64(case.w2))
    x, out = np.abs(to_float64(case.hidden_states)), np.zeros(case.hidden_states.shape)
    for t, s in np.ndindex(case.topk_ids.shape):
        e = case.topk_ids[t, s]
        if e < 0:
            continue
        w = abs(float(case.topk_weights[t, s]))
        both = w13[e] @ (x[t] * w if spec.weight_on_input else x[t])
        if case.w13_bias is not None:
            both = both + np.abs(to_float64(case.w13_bias[e]))
        halves = spec.gated and spec.gate_up_layout == "halves"
        g, u = (both.reshape(2, -1) if halves else both.reshape(-1, 2).T) if spec.gated else (both, np.ones(both.shape))
        a = g * g if spec.activation == "relu2" else g
        z = w2[e] @ (a * (u + spec.swiglu_beta))
        if case.w2_bias is not None:
            z = z + np.abs(to_float64(case.w2_bias[e]))
        out[t] += z if spec.weight_on_input else w * z
    return out
