"""An honest expert kernel in NumPy: fp32 arithmetic, a store wherever it is told to; nothing shared with references."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.numerics import Numerics

Float32 = npt.NDArray[np.float32]
DTYPES: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def experts(case: Case, inputs: dict[str, Any], does: Numerics, *, factor: float = 1.0) -> AnyArray:
    """Sum over slots of w W2 silu(g) u, for a plain gated case. does: where it stores. factor: a fault in weights."""

    def keep(values: AnyArray, name: str) -> Float32:
        fmt = getattr(does, name)
        stored: Float32 = values.astype(DTYPES[case.dtype if fmt == "input" else fmt]).astype(np.float32)
        return stored

    x = inputs["hidden_states"].astype(np.float32)
    ids = inputs["topk_ids"]
    w = keep(inputs["topk_weights"] * np.float32(factor), "topk_weights")
    terms = np.zeros((*ids.shape, x.shape[1]), np.float32)
    for expert in range(case.num_experts):
        token, slot = np.nonzero(ids == expert)
        gate_up = x[token] @ inputs["w13"][expert].astype(np.float32).T
        if "w13_bias" in inputs:
            gate_up = keep(gate_up, "before_bias") + inputs["w13_bias"][expert].astype(np.float32)
        gate, up = np.split(keep(gate_up, "gate_up"), 2, axis=1)
        with np.errstate(over="ignore"):  # as a kernel's exp does
            h = keep(keep(gate / (1 + np.exp(-gate)), "act") * up, "act_times_up")
        z = h @ inputs["w2"][expert].astype(np.float32).T
        if "w2_bias" in inputs:
            z = keep(z, "before_bias") + inputs["w2_bias"][expert].astype(np.float32)
        terms[token, slot] = keep(w[token, slot, None] * keep(z, "per_expert"), "weighted")
    if does.combine_order == "expert":
        terms = np.take_along_axis(terms, np.argsort(ids, axis=1)[..., None], axis=1)
    total = np.zeros_like(x)
    for s in range(ids.shape[1]):
        total = total + terms[:, s]
        if does.combine_order != "tree":
            total = keep(total, "combine")
    out: AnyArray = total.astype(DTYPES[case.dtype])
    return out
