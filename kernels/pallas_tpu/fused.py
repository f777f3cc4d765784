"""Expert parallelism in one Pallas TPU kernel: routing, scatter by remote DMA, experts, gather, weighted sum."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

import moecheck
from moecheck.elements import ELEMENTS
from moecheck.numerics import INPUT
from moecheck.placement import replicas_of
from moecheck.quantization import SCHEMES, Quantization

from ._blocks import INTERPRETED_LANES, LANES, Blocks, automatic, padded_size
from ._choice import check_routing
from ._launch import Arrays, run
from ._refs import Plan

# Scales of sub-channels, of whole channels and of blocks.
SCHEMES_HERE = (
    Quantization(rows=1, columns=32),
    Quantization(weights="int8", rows=1, columns=32),
    SCHEMES["fp8-channel"],
    SCHEMES["int8-channel"],
    SCHEMES["fp8-block"],
)


@moecheck.kernel(
    "expert_parallel_moe",
    backend="pallas_tpu",
    name="pallas_tpu/fused",
    numerics=moecheck.Numerics(act_times_up=INPUT, per_expert=INPUT),
    deterministic=True,
    devices=4,
    quantizations=SCHEMES_HERE,
)
def fused(
    *,
    hidden_states: jax.Array,
    router_logits: jax.Array,
    w13: jax.Array,
    w2: jax.Array,
    num_ranks: int,
    spec: moecheck.MoESpec,
    correction_bias: jax.Array | None = None,
    w13_bias: jax.Array | None = None,
    w2_bias: jax.Array | None = None,
    w13_scale: jax.Array | None = None,
    w2_scale: jax.Array | None = None,
    rank_tokens: jax.Array | None = None,
    expert_placement: jax.Array | None = None,
    blocks: Blocks | None = None,
) -> jax.Array:
    """The weighted sum of each token's experts, wherever these lie; compiled once per spec, sizes and blocks.

    hidden_states: [T, H]. router_logits: [T, E] float32. w13: [E, 2I, H]. w2: [E, H, I]. correction_bias: [E].
    w13_bias: [E, 2I]. w2_bias: [E, H]. w13_scale, w2_scale: of 8-bit codes w13 and w2, as spec.experts.quantization has
    them. rank_tokens: [P] int32, tokens of each rank. expert_placement: [Q] int32, the
    expert of each place, Q / P places on a rank. blocks: chosen for the sizes when None. Returns [T, H].
    Raises Unsupported for semantics without code here and for fewer devices than ranks, UsageError for blocks that do
    not fit.
    """
    _check(spec, num_ranks)
    (tokens, hidden), experts, intermediate = hidden_states.shape, router_logits.shape[1], w2.shape[2]
    counts = _shares(tokens, num_ranks, rank_tokens)
    placement = np.arange(experts) if expert_placement is None else np.asarray(expert_placement)
    replicas = replicas_of(placement, experts)
    lanes = LANES if jax.default_backend() == "tpu" else INTERPRETED_LANES
    if blocks is None:
        blocks = automatic(
            tokens=int(counts.max()) * num_ranks,
            hidden=hidden,
            intermediate=intermediate,
            top_k=spec.routing.top_k,
            itemsize=hidden_states.dtype.itemsize,
            lanes=lanes,
        )
    blocks.check(lanes=lanes)
    padded_tokens = padded_size(max(int(counts.max()), 1), blocks.tokens)
    plan = Plan(
        num_ranks=num_ranks,
        tokens=padded_tokens,
        experts=experts,
        places=len(placement),
        hidden=padded_size(padded_size(hidden, blocks.hidden_in), blocks.hidden_out),
        intermediate=padded_size(intermediate, blocks.intermediate),
        capacity=padded_size(padded_tokens * num_ranks, blocks.rows),
        dtype=hidden_states.dtype.name,
        group13=_group(spec.experts.quantization, blocks.hidden_in),
        group2=_group(spec.experts.quantization, blocks.intermediate),
        spec=spec,
        blocks=blocks,
    )
    rows, places = _rows(counts, padded_tokens)
    if tokens == 0:  # a rank without tokens still takes part; its rows hold whatever is there
        hidden_states, router_logits = jnp.zeros((1, hidden), hidden_states.dtype), jnp.zeros((1, experts))
    out: jax.Array = run(
        Arrays(
            hidden_states=hidden_states,
            router_logits=router_logits,
            correction_bias=correction_bias if spec.routing.correction_bias != "none" else None,
            w13=w13,
            w2=w2,
            w13_bias=w13_bias,
            w2_bias=w2_bias,
            w13_scale=w13_scale,
            w2_scale=w2_scale,
            rows=rows,
            places=places,
            counts=counts,
            experts=placement.astype(np.int32),
            copies=replicas.counts,
            table=np.maximum(replicas.physical, 0),
        ),
        plan=plan,
    )
    routing = spec.routing
    scaled = routing.scaling_placement != "topk_weights" and (
        routing.renormalize or not routing.scaling_needs_renormalize
    )
    return (out.astype(jnp.float32) * routing.routed_scaling_factor).astype(out.dtype) if scaled else out


def _check(spec: moecheck.MoESpec, num_ranks: int) -> None:
    """Raise Unsupported for what the kernel has no code for."""
    check_routing(spec.routing)
    experts = spec.experts
    if not experts.gated:
        raise moecheck.Unsupported("implements gated experts only")
    if experts.weight_on_input:
        raise moecheck.Unsupported("implements weights on the experts' outputs only")
    scheme = experts.quantization
    if scheme is not None and (ELEMENTS[scheme.weights].bits != 8 or scheme.arguments != ("w13_scale", "w2_scale")):
        raise moecheck.Unsupported(f"implements 8-bit weights with float scales, not {scheme.words()}")
    if scheme is not None and scheme.scale in ("e8m0", "e4m3"):
        raise moecheck.Unsupported(f"implements float scales, not {scheme.scale}")
    if len(jax.devices()) < num_ranks:
        raise moecheck.Unsupported(f"needs {num_ranks} devices, has {len(jax.devices())}")


def _group(quantization: Quantization | None, block: int) -> int:
    """Consecutive rows of a weight tile whose scales are the same, whatever the scheme's groups; 0 without scales."""
    if quantization is None:
        return 0
    return math.gcd(quantization.columns, block) if quantization.columns else block


def _shares(tokens: int, num_ranks: int, rank_tokens: jax.Array | None) -> np.ndarray:
    """[P] int32: tokens of each rank, as evenly as possible where nothing else is said."""
    if rank_tokens is not None:
        return np.asarray(rank_tokens, np.int32)
    each, more = divmod(tokens, num_ranks)
    return np.array([each + (rank < more) for rank in range(num_ranks)], np.int32)


def _rows(counts: np.ndarray, padded: int) -> tuple[np.ndarray, np.ndarray]:
    """The token in each of the ranks' padded rows (0 where there is none), and the row of each token; int32."""
    rows = np.zeros((len(counts), padded), np.int32)
    starts = np.cumsum(counts) - counts
    places = [rank * padded + np.arange(count) for rank, count in enumerate(counts)]
    for rank, (start, count) in enumerate(zip(starts, counts, strict=True)):
        rows[rank, :count] = start + np.arange(count)
    return rows.reshape(-1), np.concatenate(places).astype(np.int32)
