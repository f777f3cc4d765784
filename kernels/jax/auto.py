"""The choice between the fused TPU kernel and epmoe, as serving engines have it: fused, epmoe or auto."""

from __future__ import annotations

from enum import StrEnum

import jax
import jax.numpy as jnp
import moecheck
from moecheck.numerics import INPUT

from .epmoe import epmoe


class MoEBackend(StrEnum):
    """What computes an expert-parallel layer. AUTO is one of the others, by `choose`."""

    FUSED = "fused"
    EPMOE = "epmoe"
    AUTO = "auto"


LANES = 128
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


def obstacle(
    *, platform: str, num_ranks: int, hidden_size: int, intermediate_size: int, dtype: str, spec: moecheck.MoESpec
) -> str | None:
    """Why the fused kernel is not for this layer, in words; None where it is.

    platform: of JAX's devices, `tpu`, `gpu` or `cpu`. dtype: of the activations.
    """
    experts = spec.experts
    gated_unit = experts.activation in ACTIVATIONS and experts.gated
    reasons = (
        (platform != "tpu", f"it is a TPU kernel, the devices are {platform}"),
        (num_ranks < 2, "one rank exchanges nothing that could overlap with products"),
        (hidden_size % LANES != 0, f"hidden_size={hidden_size} is no multiple of {LANES}"),
        (intermediate_size % LANES != 0, f"intermediate_size={intermediate_size} is no multiple of {LANES}"),
        (dtype not in ("bf16", "fp32"), f"it takes bf16 and fp32, not {dtype}"),
        (not gated_unit, f"it has no activation {experts.activation!r}" + ("" if experts.gated else " without gates")),
        (experts.weight_on_input, "it weights the experts' outputs, not their inputs"),
        (spec.routing.selection != "topk", f"it chooses by top_k, not by {spec.routing.selection}"),
    )
    return next((words for holds, words in reasons if holds), None)


def choose(backend: MoEBackend, why_not_fused: str | None) -> MoEBackend:
    """FUSED or EPMOE. The rule: what is asked for, and for AUTO the fused kernel wherever it has no obstacle.

    Raises Unsupported for FUSED with an obstacle: who asks for a kernel never silently gets another.
    """
    if backend is MoEBackend.AUTO:
        return MoEBackend.FUSED if why_not_fused is None else MoEBackend.EPMOE
    if backend is MoEBackend.FUSED and why_not_fused is not None:
        raise moecheck.Unsupported(f"the fused kernel cannot: {why_not_fused}")
    return backend


@moecheck.kernel(
    "expert_parallel_moe",
    backend="jax",
    name="jax/auto",
    numerics=moecheck.Numerics(act_times_up=INPUT, per_expert=INPUT),
    deterministic=True,
    devices=4,
)
def auto(
    *,
    hidden_states: jax.Array,
    router_logits: jax.Array,
    w13: jax.Array,
    w2: jax.Array,
    num_ranks: int,
    correction_bias: jax.Array | None = None,
    w13_bias: jax.Array | None = None,
    w2_bias: jax.Array | None = None,
    rank_tokens: jax.Array | None = None,
    expert_placement: jax.Array | None = None,
    spec: moecheck.MoESpec,
    moe_backend: MoEBackend = MoEBackend.AUTO,
) -> jax.Array:
    """The layer by the chosen kernel; both round alike. Arguments as in expert_parallel_moe. Returns [T, H]."""
    chosen = choose(
        moe_backend,
        obstacle(
            platform=jax.devices()[0].platform,
            num_ranks=num_ranks,
            hidden_size=hidden_states.shape[1],
            intermediate_size=w2.shape[2],
            dtype={"bfloat16": "bf16", "float32": "fp32"}.get(hidden_states.dtype.name, hidden_states.dtype.name),
            spec=spec,
        ),
    )
    if chosen is MoEBackend.FUSED:
        from ..pallas_tpu.fused import fused

        return fused(
            hidden_states=hidden_states,
            router_logits=router_logits,
            w13=w13,
            w2=w2,
            num_ranks=num_ranks,
            correction_bias=correction_bias,
            w13_bias=w13_bias,
            w2_bias=w2_bias,
            rank_tokens=rank_tokens,
            expert_placement=expert_placement,
            spec=spec,
        )
    return epmoe(
        hidden_states=hidden_states,
        router_logits=router_logits,
        w13=jnp.swapaxes(w13, 1, 2),
        w2=jnp.swapaxes(w2, 1, 2),
        num_ranks=num_ranks,
        correction_bias=correction_bias,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        rank_tokens=rank_tokens,
        expert_placement=expert_placement,
        spec=spec,
    )
