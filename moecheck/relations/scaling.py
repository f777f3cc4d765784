"""The output is linear in the routing weights, in W2 and in W_up; a power of two or a sign goes through exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray, Float64
from moecheck.gate_up import gate_up_rows
from moecheck.ops import LAYERS
from moecheck.relations.premises import (
    declares_determinism,
    experts_are_linear_in_up,
    float_scales,
    not_fp16,
    output_is_linear_in_experts,
    plain_weights,
    tokens,
    values_are_moderate,
    weights_multiply_outputs,
)
from moecheck.relations.relation import Call, Calls, Inputs, Pair, Trial, relation
from moecheck.spec import ExpertSpec

FACTOR = 4.0


@relation(
    "the output for w' + w'' is the sum of those for w' and w''",
    ops=("fused_experts", "unpermute"),
    premises=(tokens(1), weights_multiply_outputs),
    keeps_shapes=True,
)
def linear_in_weights(case: Case, inputs: Inputs) -> Trial:
    """Each routing weight is split into two of its exact parts: all and nothing, a half each, nothing and all."""
    weights = inputs["topk_weights"]
    token, slot = np.indices(weights.shape)
    share = np.array([1.0, 0.5, 0.0], dtype=np.float32)[(token + slot) % 3]
    first = weights * share
    parts = (first, weights - first)
    calls = tuple(Call(case=case, inputs={**inputs, "topk_weights": part}) for part in parts)

    def pairs(seen: Calls) -> tuple[Pair, ...]:
        return (
            Pair(
                wanted=seen.outputs[0],
                got=seen.outputs[1] + seen.outputs[2],
                allowed=lambda: np.sqrt(sum(np.square(seen.allowed(i)) for i in range(3))),
            ),
        )

    return Trial(calls=calls, pairs=pairs)


@relation(
    "routing weights times 4 give the output times 4",
    ops=("fused_experts", "unpermute"),
    premises=(tokens(1), weights_multiply_outputs, not_fp16, values_are_moderate),
    exact=declares_determinism,
    keeps_shapes=True,
)
def scaled_weights(case: Case, inputs: Inputs) -> Trial:
    """A routing weight is a factor of the output and of nothing else; a kernel must not normalise it away."""
    return _proportional(case, {**inputs, "topk_weights": inputs["topk_weights"] * np.float32(FACTOR)}, FACTOR)


@relation(
    "W2 times 4 gives the output times 4",
    ops=("fused_experts", *LAYERS, "grouped_gemm"),
    premises=(tokens(1), output_is_linear_in_experts, not_fp16, values_are_moderate, float_scales),
    exact=declares_determinism,
    keeps_shapes=True,
)
def scaled_w2(case: Case, inputs: Inputs) -> Trial:
    """All second matrices and second biases, those of shared experts too."""
    names = ("w", "bias") if case.op == "grouped_gemm" else ("w2", "w2_bias", "shared_w2")
    if "w2_scale" in inputs:
        names = ("w2_scale", "w2_bias")
    return _proportional(case, _changed(inputs, names, lambda array: _times(array, FACTOR)), FACTOR)


@relation(
    "W_up times 4 gives the output times 4",
    ops=("act_and_mul", "fused_experts", *LAYERS),
    premises=(
        tokens(1),
        plain_weights,
        experts_are_linear_in_up,
        output_is_linear_in_experts,
        not_fp16,
        values_are_moderate,
    ),
    exact=declares_determinism,
    keeps_shapes=True,
)
def scaled_up(case: Case, inputs: Inputs) -> Trial:
    """The gate is not linear, the up projection is: an exchange of the two shows."""
    return _proportional(case, _with_up_times(case, inputs, FACTOR), FACTOR)


@relation(
    "W_up with the other sign gives the output with the other sign",
    ops=("act_and_mul", "fused_experts", *LAYERS),
    premises=(tokens(1), plain_weights, experts_are_linear_in_up, output_is_linear_in_experts),
    exact=declares_determinism,
    keeps_shapes=True,
)
def negated_up(case: Case, inputs: Inputs) -> Trial:
    """Rounding to nearest is symmetric, so the bits of all magnitudes stay."""
    return _proportional(case, _with_up_times(case, inputs, -1.0), -1.0)


def _proportional(case: Case, changed: Inputs, factor: float) -> Trial:
    def pairs(calls: Calls) -> tuple[Pair, ...]:
        def allowed() -> Float64:
            bound: Float64 = np.hypot(abs(factor) * calls.allowed(0), calls.allowed(1))
            return bound

        return (Pair(wanted=factor * calls.outputs[0], got=calls.outputs[1], allowed=allowed),)

    return Trial(calls=(Call(case=case, inputs=changed),), pairs=pairs)


def _with_up_times(case: Case, inputs: Inputs, factor: float) -> Inputs:
    spec = case.spec.experts
    if case.op == "act_and_mul":
        return _changed(inputs, ("x",), lambda x: np.ascontiguousarray(_up_times(x.T, spec, factor).T))
    return _changed(
        inputs,
        ("w13", "shared_w13"),
        lambda w13: (
            np.stack([_up_times(one, spec, factor) for one in w13]) if w13.ndim == 3 else _up_times(w13, spec, factor)
        ),
    )


def _up_times(rows: AnyArray, spec: ExpertSpec, factor: float) -> AnyArray:
    """The rows (gate and up in the spec's layout) with each up row times the factor."""
    changed = rows.copy()
    _, up = gate_up_rows(spec.gate_up_layout, len(rows) // 2)
    changed[up] = _times(rows[up], factor)
    return changed


def _changed(inputs: Inputs, names: tuple[str, ...], change: Callable[[AnyArray], AnyArray]) -> Inputs:
    return {**inputs, **{name: change(inputs[name]) for name in names if name in inputs}}


def _times(array: AnyArray, factor: float) -> AnyArray:
    return np.asarray(array * array.dtype.type(factor))
