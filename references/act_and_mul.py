"""Reference of `act_and_mul`: h = act(gate) * up, in every order of the columns, with the known clamps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._activation import activation, activation_estimate, tanh_limited, tanh_limited_estimate, value_and_derivative
from ._errors import Errors
from ._stores import EXACT, Estimate, contract, decode, exact_in, exactly, product, rounded, stored, stored_or_kept

ROWS = 64  # estimated at a time: arrays that fit a cache


def act_and_mul(
    *, x: AnyArray, spec: ExpertSpec, numerics: Numerics | None = None, dtype: str | None = None
) -> Float64:
    """The product h = act(g) (u + beta), or act(g) where the expert is not gated.

    x: [R, 2I] storage dtype, g = x[:, :I], u = x[:, I:] (`halves`), the other way round (`up_first`), g = x[:, ::2],
    u = x[:, 1::2] (`interleaved`), or 8 or 16 of each in turn (`interleaved_8`, `_16`, the last block shorter);
    [R, I], all of it g, when not gated. Returns [R, I] float64.
    Limit L `before`: g <- min(g, L), u <- clip(u, -L, L); `after`: min(act(g), L) clip(u, -L, L).
    situ_up_beta b: u <- b tanh(u / b), after a limit and before beta.
    numerics: None for the mathematics; else rounds at `sigmoid`, `act`, `up`, `act_times_up` and `out`.
    Sources: Shazeer 2020 (arXiv:2002.05202); GPT-OSS modelling code (interleaved, limit 7, alpha 1.702, beta 1);
    Step-3.5 (limit after the activation). NaN in g or u gives NaN in the same element only.
    """
    stores = contract(numerics, dtype, x, undeclared=EXACT)
    return rounded(activated(decode(x), spec, stores), stores.out)


def estimate(
    *, x: AnyArray, spec: ExpertSpec, numerics: Numerics | None = None, dtype: str | None = None, flips: bool = False
) -> Errors:
    """Value and error of a kernel's h. flips: about the reference rounded as in `numerics`, not about the true h.

    V_h = m^2 V_act + a^2 V_m + stores, with m = u + beta. numerics: None for all kept in fp32 but the output.
    """
    stores = contract(numerics, dtype, x, undeclared=Numerics())
    blocks = []
    for start in range(0, max(len(x), 1), ROWS):
        h = activated_estimate(exactly(decode(x[start : start + ROWS]), flips=flips), spec, stores)
        blocks.append(h if exact_in(stores.act_times_up, stores.out) else stored(h, stores.out))
    parts = (None if part[0] is None else np.concatenate(part) for part in zip(*blocks, strict=True))
    return Errors(Estimate(*parts))  # type: ignore[arg-type]  # as in h


def split(x: Float64, spec: ExpertSpec) -> tuple[Float64, Float64 | None]:
    """Gate and up columns of x: [R, 2I], or (x, None) when the expert is not gated."""
    if not spec.gated:
        return x, None
    if spec.gate_up_layout == "interleaved":
        return x[:, ::2], x[:, 1::2]
    if spec.gate_up_layout in ("interleaved_8", "interleaved_16"):
        step = 16 if spec.gate_up_layout == "interleaved_8" else 32
        gates, ups = [x[:, :0]], [x[:, :0]]
        for start in range(0, x.shape[1], step):
            block = x[:, start : start + step]
            gates.append(block[:, : block.shape[1] // 2])
            ups.append(block[:, block.shape[1] // 2 :])
        return np.concatenate(gates, axis=1), np.concatenate(ups, axis=1)
    half = x.shape[1] // 2
    first, second = x[:, :half], x[:, half:]
    return (second, first) if spec.gate_up_layout == "up_first" else (first, second)


def activated(x: Float64, spec: ExpertSpec, stores: Numerics) -> Float64:
    """The h of float64 x, rounded at sigmoid, act, up, act_times_up. x: [R, 2I] or [R, I]. Returns [R, I]."""
    gate, up = split(x, spec)
    a = rounded(activation(_gate(gate, spec), spec, sigmoid_format=stores.sigmoid), stores.act)
    if spec.swiglu_limit is not None and spec.limit_position == "after":
        a = np.minimum(a, spec.swiglu_limit)
    if up is not None:
        a = a * rounded(_multiplier(up, spec), stores.up if spec.changes_up else "fp32")
    return rounded(a, stores.act_times_up)


def activated_estimate(x: Estimate, spec: ExpertSpec, stores: Numerics, *, averaged: bool = False) -> Estimate:
    """The estimate of h. x: estimate of [R, 2I] or [R, I]. Returns [R, I]. averaged: as in activation_terms.

    V_h = (a' m)^2 V_g + (a m')^2 V_u + m^2 (V_eval + stores of a) + a^2 V_m + store of h. Where a clamp acts, the
    derivative is 0 and the clamped value is exact.
    """
    gate, up = _split_estimate(x, spec)
    if spec.swiglu_limit is not None and spec.limit_position == "before":
        gate = _clamped(gate, _gate(gate.value, spec))
    a = activation_estimate(gate, spec, sigmoid_format=stores.sigmoid, averaged=averaged)
    if stores.act != "fp32":
        a = stored(a, stores.act)
    if spec.swiglu_limit is not None and spec.limit_position == "after":
        a = _clamped(a, np.minimum(a.value, spec.swiglu_limit))
    if up is None:
        return a if exact_in(stores.act, stores.act_times_up) else stored(a, stores.act_times_up)
    m = up
    if spec.swiglu_limit is not None:
        m = _clamped(up, np.clip(up.value, -spec.swiglu_limit, spec.swiglu_limit))
    if spec.situ_up_beta is not None:
        m = tanh_limited_estimate(m, spec.situ_up_beta)
    if spec.changes_up:
        m = stored(m._replace(value=m.value + spec.swiglu_beta), stores.up)
    h = product(a, m)
    return stored_or_kept(h, stores.act_times_up) if averaged else stored(h, stores.act_times_up)


def _split_estimate(x: Estimate, spec: ExpertSpec) -> tuple[Estimate, Estimate | None]:
    parts = [None if part is None else split(part, spec) for part in x]
    gate = Estimate(*(None if part is None else part[0] for part in parts))  # type: ignore[arg-type]  # as in x
    if not spec.gated:
        return gate, None
    return gate, Estimate(*(None if part is None else part[1] for part in parts))  # type: ignore[arg-type]  # as in x


def _clamped(x: Estimate, value: Float64) -> Estimate:
    """The estimate with clamped values, which are exact where the clamp acts."""
    free = x.value == value
    rare = None if x.rare is None else x.rare * free
    size = None if x.size is None else x.size * free
    return Estimate(value, x.dense * free, rare, size)


class Factors(NamedTuple):
    """h = a m with derivatives by g and u, each [R, I]."""

    a: Float64
    da: Float64
    m: Float64
    dm: Float64


def factors(x: Float64, spec: ExpertSpec) -> Factors:
    """The factors a = act(g), m = u + beta or what situ makes of u, and their derivatives, 0 where clamped.

    x: [R, 2I] or [R, I] float64.
    """
    gate, up = split(x, spec)
    clamped = _gate(gate, spec)
    a, da = value_and_derivative(clamped, spec)
    if clamped is not gate:
        da = np.where(gate == clamped, da, 0.0)
    if spec.swiglu_limit is not None and spec.limit_position == "after":
        a, da = np.minimum(a, spec.swiglu_limit), np.where(a <= spec.swiglu_limit, da, 0.0)
    if up is None:
        return Factors(a, da, np.ones(a.shape), np.zeros(a.shape))
    inside = np.ones(up.shape) if spec.swiglu_limit is None else (np.abs(up) <= spec.swiglu_limit).astype(np.float64)
    if spec.situ_up_beta is not None:
        inside = inside * (1.0 - np.square(np.tanh(up / spec.situ_up_beta)))
    return Factors(a, da, _multiplier(up, spec), inside)


def _gate(gate: Float64, spec: ExpertSpec) -> Float64:
    if spec.swiglu_limit is None or spec.limit_position == "after":
        return gate
    return np.minimum(gate, spec.swiglu_limit)


def _multiplier(up: Float64, spec: ExpertSpec) -> Float64:
    if spec.swiglu_limit is not None:
        up = np.clip(up, -spec.swiglu_limit, spec.swiglu_limit)
    if spec.situ_up_beta is not None:
        up = tanh_limited(up, spec.situ_up_beta)
    return up if spec.swiglu_beta == 0.0 else up + spec.swiglu_beta
