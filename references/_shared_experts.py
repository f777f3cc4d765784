"""The shared experts of a layer: their weights, their gate, and the error of a kernel's sum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moecheck.formats import AnyArray, Float64, ulp
from moecheck.numerics import Numerics
from moecheck.spec import MoESpec

from ._activation import sigmoid
from ._errors import Errors, FactorError, Question, SharedError
from ._expert import GroupedWeights, Weights, expert_estimates
from ._row_groups import whole
from ._stores import Estimate, decode, exact_in, exact_linear_estimate, exactly, given, product, stored

GATE_ULPS = 2.0  # standard deviation, in fp32 ulps, of a sigmoid that a kernel computed in fp32


def shared_estimates(
    x: Float64,
    shared_w13: AnyArray | None,
    shared_w2: AnyArray | None,
    shared_gate: AnyArray | None,
    spec: MoESpec,
    stores: Numerics,
    asked: Sequence[Question],
) -> list[Errors]:
    """The shared experts' sum, gated where the spec says so, stored at `out`: one answer for each question."""
    weights = shared_weights(shared_w13, shared_w2)
    groups = GroupedWeights(whole(x, weights.w13), whole(x, weights.w2))
    exact = [exactly(x, flips=q.flips) for q in asked]
    rows = np.arange(len(x))
    estimates = expert_estimates(exact, groups, spec.shared, stores, asked)
    outputs = []
    for q, (z, v_h, step, shared) in zip(asked, estimates, strict=True):
        scale, last = np.ones(len(x)), stores.per_expert
        sources = list[SharedError | FactorError]()
        if spec.shared_experts == "gated":
            gate, flip = _gate_estimate(x, shared_gate, stores, q)
            scale, last = gate.value[:, 0], stores.weighted
            if shared is not None:
                shared = shared * np.square(gate.value) + np.square(z.value) * gate.variance
                sources.append(FactorError(rows=rows, variance=gate.variance[:, 0], along=z.value, step=flip))
            z = stored(product(z, gate), stores.weighted)
        if v_h is not None and step is not None:
            sources.append(SharedError(rows=rows, scale=scale, variance=v_h, step=step, groups=groups.w2))
        if not exact_in(last, stores.out):
            z = stored(z, stores.out)
        outputs.append(Errors(z, shared, tuple(sources), rows=q.rows))
    return outputs


def _gate_estimate(
    x: Float64, shared_gate: AnyArray | None, stores: Numerics, question: Question
) -> tuple[Estimate, Float64]:
    """The estimate of sigmoid(x . shared_gate), [T, 1], and the size of one flip of it, [T]."""
    row = decode(needed("shared_gate", shared_gate))[None, :]
    logit = exact_linear_estimate(x, whole(x, row), accumulate=stores.accumulate)
    logit = stored(given(logit, flips=question.flips), stores.gate_up)
    value = sigmoid(logit.value)
    slope = value * (1.0 - value)
    gate = logit.through(value, slope)
    gate = gate._replace(dense=gate.dense + np.square(GATE_ULPS * ulp(value, "fp32")))
    flip = ulp(logit.value, stores.gate_up) * slope + ulp(value, stores.act)
    return gate if stores.act == "fp32" else stored(gate, stores.act), flip[:, 0]


def shared_weights(shared_w13: AnyArray | None, shared_w2: AnyArray | None) -> Weights:
    """The shared experts' matrices, one expert of their joint width."""
    return Weights(
        w13=decode(needed("shared_w13", shared_w13)), w2=decode(needed("shared_w2", shared_w2)), b13=None, b2=None
    )


def gate_logit(x: Float64, shared_gate: AnyArray | None) -> Float64:
    """X . shared_gate, [T, 1]."""
    logit: Float64 = x @ decode(needed("shared_gate", shared_gate))
    return logit[:, None]


def needed(name: str, array: AnyArray | None) -> AnyArray:
    """An optional array that the spec needs; raises ValueError where it was not given."""
    if array is None:
        raise ValueError(f"the spec needs {name}, which was not given.")
    return array
