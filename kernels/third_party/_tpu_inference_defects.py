"""tpu-inference's fused kernel where it is wrong: no kernels of a run, to be asked for by their place.

moecheck kernels --kernel moecheck.kernels.third_party._tpu_inference_defects:many_experts (or :bf16)
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

import moecheck
from moecheck.numerics import INPUT

from ._tpu_inference import LAYOUT, on_ranks


@moecheck.kernel(
    "expert_parallel_moe",
    backend="pallas_tpu",
    name="tpu_inference/many_experts",
    dtypes=("fp32",),
    numerics=moecheck.Numerics(),
    deterministic=True,
    weight_layout=LAYOUT,
    devices=4,
)
def many_experts(
    *,
    hidden_states: jax.Array,
    router_logits: jax.Array,
    w13: jax.Array,
    w2: jax.Array,
    num_ranks: int,
    spec: moecheck.MoESpec,
) -> jax.Array:
    """Three experts on a rank or more: the third's output overwrites what a copy of the first's still reads."""
    return on_ranks(hidden_states, router_logits, w13, w2, None, None, num_ranks=num_ranks, spec=spec)


@moecheck.kernel(
    "expert_parallel_moe",
    backend="pallas_tpu",
    name="tpu_inference/bf16",
    dtypes=("bf16",),
    numerics=moecheck.Numerics(scores=INPUT, per_expert=INPUT),
    deterministic=True,
    weight_layout=replace(LAYOUT, hidden_multiple=256),  # two rows of bf16 in a register
    devices=4,
)
def bf16(
    *,
    hidden_states: jax.Array,
    router_logits: jax.Array,
    w13: jax.Array,
    w2: jax.Array,
    num_ranks: int,
    spec: moecheck.MoESpec,
) -> jax.Array:
    """Each expert's output is cut off to bf16, not rounded. Logits are of the tokens' dtype, which must hold them."""
    logits = router_logits.astype(hidden_states.dtype)
    if bool((logits.astype(jnp.float32) != router_logits).any()):
        raise moecheck.Unsupported("takes logits in the dtype of the tokens, and these are not of it")
    return on_ranks(hidden_states, logits, w13, w2, None, None, num_ranks=num_ranks, spec=spec)
