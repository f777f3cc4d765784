"""The fused expert-parallel kernel of tpu-inference (0.32, kernels/fused_moe/v1) in fp32, on simulated TPUs."""

from __future__ import annotations

import jax

import moecheck

from ._tpu_inference import LAYOUT, fused_moe, on_ranks

fused_moe()  # a reason to skip, where it is not installed
MOST_LOCAL = 2


# In bf16 it stores each expert's output cut off instead of rounded: docs/expert-parallel.md has both of its defects.
@moecheck.kernel(
    "expert_parallel_moe",
    backend="pallas_tpu",
    name="tpu_inference/fused_ep_moe",
    dtypes=("fp32",),
    numerics=moecheck.Numerics(),
    deterministic=True,
    weight_layout=LAYOUT,
    devices=4,
)
def fused_ep_moe(
    *,
    hidden_states: jax.Array,
    router_logits: jax.Array,
    w13: jax.Array,
    w2: jax.Array,
    num_ranks: int,
    w13_bias: jax.Array | None = None,
    w2_bias: jax.Array | None = None,
    spec: moecheck.MoESpec,
) -> jax.Array:
    """Tokens are padded to equally many on each rank, as its callers do. w13: [E, 2, H, I]. w2: [E, I, H]. Others as in
    expert_parallel_moe, biases [E, 2, I] and [E, H].
    """
    if router_logits.shape[1] > MOST_LOCAL * num_ranks:
        raise moecheck.Unsupported(
            f"with more than {MOST_LOCAL} experts on a rank it overwrites rows that a copy still reads "
            "(_tpu_inference_defects:many_experts shows it)"
        )
    return on_ranks(hidden_states, router_logits, w13, w2, w13_bias, w2_bias, num_ranks=num_ranks, spec=spec)
