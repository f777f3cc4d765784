"""Reference of `act_and_mul`: h = act(gate) * up, on halves or interleaved columns, with the known clamps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._activation import activation, derivative, evaluation_variance
from ._stores import EXACT, contract, decode, exact_in, rounded, store_variance


def act_and_mul(
    *, x: AnyArray, spec: ExpertSpec, numerics: Numerics | None = None, dtype: str | None = None
) -> Float64:
    """The product h = act(g) (u + beta), or act(g) where the expert is not gated.

    x: [R, 2I] storage dtype, g = x[:, :I], u = x[:, I:] (`halves`) or g = x[:, ::2], u = x[:, 1::2] (`interleaved`);
    [R, I], all of it g, when not gated. Returns [R, I] float64.
    Limit L `before`: g <- min(g, L), u <- clip(u, -L, L); `after`: min(act(g), L) clip(u, -L, L).
    numerics: None for the mathematics; else rounds at `act`, `act_times_up` and `out`.
    Sources: Shazeer 2020 (arXiv:2002.05202); GPT-OSS modelling code (interleaved, limit 7, alpha 1.702, beta 1);
    Step-3.5 (limit after the activation). NaN in g or u gives NaN in the same element only.
    """
    stores = contract(numerics, dtype, x, undeclared=EXACT)
    return rounded(activated(decode(x), spec, stores), stores.out)


def value_and_sigma(
    *, x: AnyArray, spec: ExpertSpec, numerics: Numerics | None = None, dtype: str | None = None
) -> tuple[Float64, Float64]:
    """The unrounded h and the standard deviation of a kernel's error, both [R, I] float64.

    V_h = m^2 V_act + a^2 V_m + stores, with m = u + beta. numerics: None for all kept in fp32 but the output.
    """
    stores = contract(numerics, dtype, x, undeclared=Numerics())
    h, variance = activated_with_variance(decode(x), None, spec, stores)
    if not exact_in(stores.act_times_up, stores.out):
        variance += store_variance(h, stores.out)
    return h, np.sqrt(variance)


def split(x: Float64, spec: ExpertSpec) -> tuple[Float64, Float64 | None]:
    """Gate and up columns (views) of x: [R, 2I], or (x, None) when the expert is not gated."""
    if not spec.gated:
        return x, None
    if spec.gate_up_layout == "interleaved":
        return x[:, ::2], x[:, 1::2]
    half = x.shape[1] // 2
    return x[:, :half], x[:, half:]


def activated(x: Float64, spec: ExpertSpec, stores: Numerics) -> Float64:
    """The h of float64 x, rounded at `act` and `act_times_up`. x: [R, 2I] or [R, I] float64. Returns [R, I]."""
    gate, up = split(x, spec)
    a = rounded(activation(_gate(gate, spec), spec), stores.act)
    if spec.swiglu_limit is not None and spec.limit_position == "after":
        a = np.minimum(a, spec.swiglu_limit)
    if up is not None:
        a *= _multiplier(up, spec)
    return rounded(a, stores.act_times_up)


def activated_with_variance(
    x: Float64, v_x: Float64 | None, spec: ExpertSpec, stores: Numerics
) -> tuple[Float64, Float64]:
    """Unrounded h and V_h. x, v_x: [R, 2I] or [R, I] float64, value and variance (None: exact). Returns two [R, I].

    V_h = (a' m)^2 V_g + (a m')^2 V_u + m^2 (V_eval + ulp(a)^2/12) + a^2 ulp32(m)^2/12 + ulp(h)^2/12. Where a clamp
    acts, the derivative is 0 and the clamped value is exact.
    """
    f = factors(x, spec)
    v_a = np.where(f.free, evaluation_variance(_gate(split(x, spec)[0], spec), spec), 0.0)
    if stores.act != "fp32":
        v_a += store_variance(f.a, stores.act)
    h = f.a * f.m
    variance = np.square(f.m) * v_a
    if spec.gated and spec.swiglu_beta != 0.0:
        variance += np.square(f.a) * store_variance(f.m, "fp32")
    if v_x is not None:
        v_gate, v_up = split(v_x, spec)
        variance += np.square(f.da * f.m) * v_gate
        if v_up is not None:
            variance += np.square(f.a * f.dm) * v_up
    if spec.gated or not exact_in(stores.act, stores.act_times_up):
        variance += store_variance(h, stores.act_times_up)
    return h, variance


class Factors(NamedTuple):
    """h = a m with derivatives by g and u, each [R, I]; free: where a is not clamped after the activation."""

    a: Float64
    da: Float64
    m: Float64
    dm: Float64
    free: AnyArray


def factors(x: Float64, spec: ExpertSpec) -> Factors:
    """The factors a = act(g) and m = u + beta and their derivatives, 0 where clamped. x: [R, 2I] or [R, I] float64."""
    gate, up = split(x, spec)
    clamped = _gate(gate, spec)
    a = activation(clamped, spec)
    da = np.where(gate == clamped, derivative(clamped, spec), 0.0)
    free = np.ones(a.shape, dtype=bool)
    if spec.swiglu_limit is not None and spec.limit_position == "after":
        free = a <= spec.swiglu_limit
        a, da = np.minimum(a, spec.swiglu_limit), np.where(free, da, 0.0)
    if up is None:
        return Factors(a, da, np.ones(a.shape), np.zeros(a.shape), free)
    inside = np.ones(up.shape) if spec.swiglu_limit is None else (np.abs(up) <= spec.swiglu_limit).astype(np.float64)
    return Factors(a, da, _multiplier(up, spec), inside, free)


def _gate(gate: Float64, spec: ExpertSpec) -> Float64:
    if spec.swiglu_limit is None or spec.limit_position == "after":
        return gate
    return np.minimum(gate, spec.swiglu_limit)


def _multiplier(up: Float64, spec: ExpertSpec) -> Float64:
    if spec.swiglu_limit is not None:
        up = np.clip(up, -spec.swiglu_limit, spec.swiglu_limit)
    return up if spec.swiglu_beta == 0.0 else up + spec.swiglu_beta
