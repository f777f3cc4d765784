"""A MoE layer made of random summands, and candidates that compute it in a known wrong way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecheck.evals.backends.records import LayerCapture, ModelFacts
from moecheck.formats import store, to_float64

FACTS = ModelFacts(
    name="synthetic",
    moe_layers=(1, 2),
    num_experts=16,
    top_k=4,
    hidden_size=64,
    vocab_size=50,
    routed_scaling_factor=2.5,
    shared_experts=1,
)


def rows(value: np.ndarray) -> np.ndarray:
    return np.asarray(value, dtype=np.float32)


def reference(layer: int = 1, *, tokens: int = 256, shared: bool = True) -> LayerCapture:
    """Routed and shared summands of about equal size; token 5 is a tie."""
    draw = np.random.default_rng(layer)
    hidden, routed, other = (rows(draw.normal(size=(tokens, FACTS.hidden_size))) for _ in range(3))
    ids = np.argsort(draw.random((tokens, FACTS.num_experts)), axis=1)[:, : FACTS.top_k].astype(np.int32)
    weights = draw.random((tokens, FACTS.top_k)) + 0.1
    gap = np.full(tokens, 0.05, np.float32)
    gap[5] = 0
    return LayerCapture(
        layer=layer,
        hidden=hidden,
        output=routed + other if shared else routed,
        topk_ids=ids,
        topk_weights=rows(weights / weights.sum(axis=1, keepdims=True)),
        routed=routed,
        shared=other if shared else None,
        choice_gap=gap,
    )


def candidate(capture: LayerCapture, *, alpha: float = 1.0, beta: float = 1.0, dtype: str = "bf16") -> LayerCapture:
    """The layer with its components so weighted, each rounded to `dtype` as a kernel stores it."""
    assert capture.routed is not None
    output = alpha * to_float64(store(capture.routed.astype(np.float64), dtype))
    if capture.shared is not None:
        output = output + beta * to_float64(store(capture.shared.astype(np.float64), dtype))
    return replace(capture, output=rows(to_float64(store(output, dtype))), routed=None, shared=None)
