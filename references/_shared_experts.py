"""The shared experts of a layer: their weights, their gate, and the error of a kernel's sum."""

from __future__ import annotations

import numpy as np

from moecheck.formats import AnyArray, Float64, ulp
from moecheck.numerics import Numerics
from moecheck.spec import MoESpec

from ._activation import sigmoid
from ._errors import Errors, FactorError, SharedError
from ._expert import Weights, expert_estimate
from ._stores import Estimate, decode, exact_in, linear_estimate, product, stored

GATE_ULPS = 2.0  # standard deviation, in fp32 ulps, of a sigmoid that a kernel computed in fp32


def shared_estimate(
    x: Estimate,
    shared_w13: AnyArray | None,
    shared_w2: AnyArray | None,
    shared_gate: AnyArray | None,
    spec: MoESpec,
    stores: Numerics,
) -> Errors:
    """The shared experts' sum, gated where the spec says so, stored at `out`."""
    weights = shared_weights(shared_w13, shared_w2)
    z, v_h, step, shared = expert_estimate(x, weights, spec.shared, stores)
    assert v_h is not None and step is not None and shared is not None  # noqa: PT018  # all three or none
    rows, scale = np.arange(len(v_h)), np.ones(len(v_h))
    sources = list[SharedError | FactorError]()
    last = stores.per_expert
    if spec.shared_experts == "gated":
        gate, flip = _gate_estimate(x, shared_gate, stores)
        scale = gate.value[:, 0]
        shared = shared * np.square(gate.value) + np.square(z.value) * gate.variance
        sources.append(FactorError(rows=rows, variance=gate.variance[:, 0], along=z.value, step=flip))
        z = stored(product(z, gate), stores.weighted)
        last = stores.weighted
    sources.append(SharedError(rows=rows, scale=scale, variance=v_h, step=step, matrix=lambda: weights.w2))
    if not exact_in(last, stores.out):
        z = stored(z, stores.out)
    return Errors(z, shared, tuple(sources))


def _gate_estimate(x: Estimate, shared_gate: AnyArray | None, stores: Numerics) -> tuple[Estimate, Float64]:
    """The estimate of sigmoid(x . shared_gate), [T, 1], and the size of one flip of it, [T]."""
    row = decode(given("shared_gate", shared_gate))[None, :]
    product_with_row = linear_estimate(x, row, exact_input=True, accumulate=stores.accumulate)
    logit = stored(product_with_row, stores.gate_up)
    value = sigmoid(logit.value)
    slope = value * (1.0 - value)
    gate = logit.scaled(slope)
    gate = gate._replace(value=value, dense=gate.dense + np.square(GATE_ULPS * ulp(value, "fp32")))
    flip = ulp(logit.value, stores.gate_up) * slope + ulp(value, stores.act)
    return gate if stores.act == "fp32" else stored(gate, stores.act), flip[:, 0]


def shared_weights(shared_w13: AnyArray | None, shared_w2: AnyArray | None) -> Weights:
    """The shared experts' matrices, one expert of their joint width."""
    return Weights(
        w13=decode(given("shared_w13", shared_w13)), w2=decode(given("shared_w2", shared_w2)), b13=None, b2=None
    )


def gate_logit(x: Float64, shared_gate: AnyArray | None) -> Float64:
    """X . shared_gate, [T, 1]."""
    logit: Float64 = x @ decode(given("shared_gate", shared_gate))
    return logit[:, None]


def given(name: str, array: AnyArray | None) -> AnyArray:
    """An optional array that the spec needs; raises ValueError where it was not given."""
    if array is None:
        raise ValueError(f"the spec needs {name}, which was not given.")
    return array
