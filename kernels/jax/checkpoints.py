"""Weights of expert-parallel layers as checkpoints have them, and in the fused layout of TPU kernels; both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecheck.errors import UsageError, check_known

Tensors = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names of a layer's tensors behind `model.layers.N.`; {} is the expert. router: [E, H]. correction_bias: [E].

    gate, up: [I, H]. down: [H, I]. shared: gate, up and down of the expert that all tokens meet, where there is one.
    """

    gate: str
    up: str
    down: str
    router: str
    correction_bias: str | None = None
    shared: tuple[str, str, str] | None = None


def _projections(prefix: str) -> tuple[str, str, str]:
    return (f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight", f"{prefix}.down_proj.weight")


_GATE, _UP, _DOWN = _projections("mlp.experts.{}")
# Sources: transformers' qwen3_moe and Bailing's own modelling code; sglang's loader of Grok, which takes w1, w3 and w2
# for gate, up and down, and the dense MLP beside the experts.
LAYOUTS = {
    "qwen3-moe": Names(gate=_GATE, up=_UP, down=_DOWN, router="mlp.gate.weight"),
    "bailing-moe": Names(
        gate=_GATE,
        up=_UP,
        down=_DOWN,
        router="mlp.gate.weight",
        correction_bias="mlp.gate.expert_bias",
        shared=_projections("mlp.shared_experts"),
    ),
    "grok-2": Names(
        gate="block_sparse_moe.experts.{}.w1.weight",
        up="block_sparse_moe.experts.{}.w3.weight",
        down="block_sparse_moe.experts.{}.w2.weight",
        router="block_sparse_moe.gate.weight",
        shared=_projections("mlp"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedWeights:
    """A layer in the fused layout. w13: [E, 2, H, I], gate first. w2: [E, I, H]. router: [H, E]. correction_bias: [E].

    shared_w13: [2, H, S]. shared_w2: [S, H]. Of the checkpoint's dtypes.
    """

    w13: np.ndarray[Any, np.dtype[Any]]
    w2: np.ndarray[Any, np.dtype[Any]]
    router: np.ndarray[Any, np.dtype[Any]]
    correction_bias: np.ndarray[Any, np.dtype[Any]] | None = None
    shared_w13: np.ndarray[Any, np.dtype[Any]] | None = None
    shared_w2: np.ndarray[Any, np.dtype[Any]] | None = None


def fuse(tensors: Tensors, layout: str, *, layer: int) -> FusedWeights:
    """The fused weights of a layer of a checkpoint. layout: a name in LAYOUTS.

    Raises UsageError for an unknown layout, a tensor that is missing, and experts of different shapes.
    """
    names, prefix = _names(layout), f"model.layers.{layer}."
    router = _tensor(tensors, prefix + names.router)
    experts = range(len(router))

    def stacked(name: str) -> np.ndarray[Any, np.dtype[Any]]:
        matrices = [_tensor(tensors, prefix + name.format(expert)).T for expert in experts]
        for expert, matrix in enumerate(matrices):
            if matrix.shape != matrices[0].shape:
                raise UsageError(
                    f"{prefix}{name.format(expert)} is {matrix.T.shape}, that of expert 0 {matrices[0].T.shape}."
                )
        return np.stack(matrices)

    shared = names.shared and [_tensor(tensors, prefix + name).T for name in names.shared]
    return FusedWeights(
        w13=np.stack([stacked(names.gate), stacked(names.up)], axis=1),
        w2=stacked(names.down),
        router=np.ascontiguousarray(router.T),
        correction_bias=None if names.correction_bias is None else _tensor(tensors, prefix + names.correction_bias),
        shared_w13=np.stack(shared[:2]) if shared else None,
        shared_w2=np.ascontiguousarray(shared[2]) if shared else None,
    )


def unfuse(weights: FusedWeights, layout: str, *, layer: int) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """The inverse of `fuse`: the layer's tensors by their names in the checkpoint, bit for bit.

    Raises UsageError for an unknown layout, and where the layout has a tensor that the weights have not.
    """
    names, prefix = _names(layout), f"model.layers.{layer}."
    tensors = {names.router: weights.router.T}
    for expert, (gate, up) in enumerate(weights.w13):
        tensors |= {names.gate.format(expert): gate.T, names.up.format(expert): up.T}
        tensors[names.down.format(expert)] = weights.w2[expert].T
    if names.correction_bias is not None:
        tensors[names.correction_bias] = _given(weights.correction_bias, names.correction_bias)
    if names.shared is not None:
        gate, up = _given(weights.shared_w13, names.shared[0])
        down = _given(weights.shared_w2, names.shared[2])
        tensors |= dict(zip(names.shared, (gate.T, up.T, down.T), strict=True))
    return {prefix + name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _names(layout: str) -> Names:
    check_known("layout", layout, LAYOUTS)
    return LAYOUTS[layout]


def _tensor(tensors: Tensors, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    if name not in tensors:
        raise UsageError(f"The checkpoint has no tensor {name!r}.")
    return tensors[name]


def _given(array: np.ndarray[Any, np.dtype[Any]] | None, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    if array is None:
        raise UsageError(f"The layout has {name!r}, and these weights have nothing for it.")
    return array
