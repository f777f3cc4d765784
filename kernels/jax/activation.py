"""The expert's activation in JAX: one fp32 evaluation, one store."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import moecheck
from moecheck.numerics import INPUT

from ._stores import stored


@moecheck.kernel(
    "act_and_mul",
    backend="jax",
    name="jax/act_and_mul",
    numerics=moecheck.Numerics(act_times_up=INPUT),
    deterministic=True,
)
def act_and_mul(*, x: jax.Array, spec: moecheck.ExpertSpec) -> jax.Array:
    """act(gate) * up of each row, or act(x) when the spec is not gated.

    x: [rows, 2I] or [rows, I]. Returns [rows, I] in the dtype of x.
    """
    out: jax.Array = _stored_activation(x, spec)
    return out


@functools.partial(jax.jit, static_argnames="spec")
def _stored_activation(x: jax.Array, spec: moecheck.ExpertSpec) -> jax.Array:
    return stored(activated(x.astype(jnp.float32), spec), x.dtype)


def activated(x: jax.Array, spec: moecheck.ExpertSpec) -> jax.Array:
    """act_and_mul of float32 values, not rounded. x: [rows, 2I] or [rows, I]. Returns [rows, I] float32."""
    if not spec.gated:
        return _limited(x, spec)
    if spec.gate_up_layout in ("interleaved_8", "interleaved_16"):
        raise moecheck.Unsupported("implements no blocks of gates and ups")
    if spec.gate_up_layout == "interleaved":
        gate, up = x[:, ::2], x[:, 1::2]
    else:
        first, second = jnp.split(x, 2, axis=1)
        gate, up = (second, first) if spec.gate_up_layout == "up_first" else (first, second)
    if spec.swiglu_limit is not None:
        up = jnp.clip(up, -spec.swiglu_limit, spec.swiglu_limit)
    if spec.situ_up_beta is not None:
        up = spec.situ_up_beta * jnp.tanh(up / spec.situ_up_beta)
    return _limited(gate, spec) * (up + spec.swiglu_beta)


def _limited(gate: jax.Array, spec: moecheck.ExpertSpec) -> jax.Array:
    if spec.swiglu_limit is None:
        return _activate(gate, spec)
    if spec.limit_position == "before":
        return _activate(jnp.minimum(gate, spec.swiglu_limit), spec)
    return jnp.minimum(_activate(gate, spec), spec.swiglu_limit)


def _activate(gate: jax.Array, spec: moecheck.ExpertSpec) -> jax.Array:
    if spec.activation == "silu":
        return gate * jax.nn.sigmoid(spec.swiglu_alpha * gate)
    if spec.activation in ("gelu", "gelu_tanh"):
        return jax.nn.gelu(gate, approximate=spec.activation == "gelu_tanh")
    if spec.activation == "relu2":
        return jnp.square(jax.nn.relu(gate))
    return spec.situ_beta * jnp.tanh(gate / spec.situ_beta) * jax.nn.sigmoid(gate)
