"""One expert applied to its rows: z = W2 f(W1 x + b1) + b2, and the variance of a kernel's z."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._stores import linear, linear_variance, rounded, store_variance
from .act_and_mul import activated, activated_with_variance, factors, split


class ExpertArrays(Protocol):
    """A stack of one matrix per expert: an array [E, rows, columns], or an object that makes each matrix when asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, expert: int, /) -> AnyArray: ...


class Weights(NamedTuple):
    """One expert's float64 arrays. w13: [2I, H] or [I, H]. w2: [H, I]. b13: [2I] or [I]. b2: [H]."""

    w13: Float64
    w2: Float64
    b13: Float64 | None
    b2: Float64 | None


def expert_output(x: Float64, weights: Weights, spec: ExpertSpec, stores: Numerics) -> Float64:
    """One expert's z, rounded at `gate_up`, `act`, `act_times_up`, `per_expert`. x: [n, H] float64. Returns [n, H]."""
    gate_up = rounded(linear(x, weights.w13, weights.b13), stores.gate_up)
    h = rounded(activated(gate_up, spec, stores), stores.act_times_up)
    return rounded(linear(h, weights.w2, weights.b2), stores.per_expert)


def expert_with_variance(
    x: Float64, v_x: Float64 | None, weights: Weights, spec: ExpertSpec, stores: Numerics
) -> tuple[Float64, Float64]:
    """Unrounded z and V_z. x, v_x: [n, H] float64, value and variance (None: exact). Returns two [n, H].

    V_g,u = V(x W13^T) + ulp(g)^2/12; V_h as in act_and_mul; V_z = V(h W2^T) + ulp(z)^2/12, where V(x W^T) has the
    inputs' errors and the fp32 accumulation. Errors of different columns of h are taken as independent.
    """
    gate_up = linear(x, weights.w13, weights.b13)
    v_gate_up = linear_variance(x, v_x, weights.w13, gate_up) + store_variance(gate_up, stores.gate_up)
    h, v_h = activated_with_variance(gate_up, v_gate_up, spec, stores)
    z = linear(h, weights.w2, weights.b2)
    return z, linear_variance(h, v_h, weights.w2, z) + store_variance(z, stores.per_expert)


def expert_slope(x: Float64, dx: Float64, weights: Weights, spec: ExpertSpec) -> Float64:
    """Directional derivative of z at x along dx: W2 (a' m dg + a m' du). x, dx: [n, H] float64. Returns [n, H]."""
    f = factors(linear(x, weights.w13, weights.b13), spec)
    dg, du = split(linear(dx, weights.w13), spec)
    dh = f.da * f.m * dg
    if du is not None:
        dh += f.a * f.dm * du
    return linear(dh, weights.w2)
