"""Choice and weights of experts in JAX, every score in fp32."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import moecheck


@moecheck.kernel(
    "topk_routing",
    backend="jax",
    name="jax/topk_routing",
    numerics=moecheck.Numerics(out="fp32"),
    deterministic=True,
    tie="lowest_index",
)
def topk_routing(
    *, router_logits: jax.Array, correction_bias: jax.Array | None = None, spec: moecheck.RoutingSpec
) -> tuple[jax.Array, jax.Array]:
    """Choose and weigh experts; equal scores go to the lowest id, non-finite scores count as 0.

    router_logits: [T, E]. correction_bias: [E] float32. Returns topk_weights [T, top_k] float32 and topk_ids [T, top_k]
    int32. Raises Unsupported for sparsemixer, fused shared experts and per-expert scales.
    """
    for field, supported in (("selection", "topk"), ("num_fused_shared_experts", 0), ("per_expert_scale", False)):
        if getattr(spec, field) != supported:
            raise moecheck.Unsupported(f"implements {field}={supported!r}, not {getattr(spec, field)!r}")
    if spec.correction_bias == "none":
        correction_bias = jnp.zeros(router_logits.shape[1])
    elif correction_bias is None:
        raise moecheck.Unsupported("the spec uses correction_bias, which was not given")
    routed: tuple[jax.Array, jax.Array] = _route(router_logits, correction_bias, spec=spec)
    return routed


@functools.partial(jax.jit, static_argnames="spec")
def _route(router_logits: jax.Array, bias: jax.Array, *, spec: moecheck.RoutingSpec) -> tuple[jax.Array, jax.Array]:
    logits = router_logits.astype(jnp.float32)
    if spec.softcap is not None:
        logits = spec.softcap * jnp.tanh(logits / spec.softcap)
    if spec.correction_bias == "logits":
        logits += bias
    defined = jnp.isfinite(logits.max(axis=1, keepdims=True))
    scores = jnp.nan_to_num(_scores(logits, spec), nan=0.0, posinf=0.0, neginf=0.0)
    choice = jnp.where(defined, logits, 0) if spec.softmax_over_selected or spec.choose_by_logits else scores
    if spec.correction_bias == "select":
        choice += bias
    if spec.num_expert_groups > 1:
        choice = _mask_groups(choice, spec)
    ids = _top_ids(choice, spec.top_k)
    weights = jnp.take_along_axis(logits if spec.softmax_over_selected else scores, ids, axis=1)
    if spec.softmax_over_selected:
        weights = jnp.where(defined, jax.nn.softmax(weights, axis=1), 0)
    if spec.renormalize:
        weights /= _denominator(weights, spec)
    if spec.scaling_placement == "topk_weights" and (spec.renormalize or not spec.scaling_needs_renormalize):
        weights *= spec.routed_scaling_factor
    return weights, ids.astype(jnp.int32)


def _scores(logits: jax.Array, spec: moecheck.RoutingSpec) -> jax.Array:
    if spec.scoring == "softmax":
        return jax.nn.softmax(logits, axis=1)
    if spec.scoring == "sigmoid":
        return jax.nn.sigmoid(logits)
    return jnp.sqrt(jax.nn.softplus(logits))


def _top_ids(values: jax.Array, count: int) -> jax.Array:
    """Ids of the `count` largest values of each row, the lowest id first among equals."""
    return jax.lax.top_k(values, count)[1]


def _mask_groups(choice: jax.Array, spec: moecheck.RoutingSpec) -> jax.Array:
    groups = spec.num_expert_groups
    grouped = choice.reshape(len(choice), groups, choice.shape[1] // groups)
    score = jax.lax.top_k(grouped, 1 if spec.group_score == "max" else 2)[0].sum(axis=2)
    kept = jax.nn.one_hot(_top_ids(score, spec.topk_groups), groups, dtype=bool).any(axis=1)
    fill = -jnp.inf if spec.group_mask == "neg_inf" else 0.0
    return jnp.where(kept[..., None], grouped, fill).reshape(choice.shape)


def _denominator(weights: jax.Array, spec: moecheck.RoutingSpec) -> jax.Array:
    if spec.renorm_norm == 1.0:
        total = weights.sum(axis=1, keepdims=True)
    else:
        total = (weights**spec.renorm_norm).sum(axis=1, keepdims=True) ** (1 / spec.renorm_norm)
    if spec.renorm_eps_rule == "add":
        return total + spec.renorm_eps
    if spec.renorm_eps_rule == "clamp_min":
        return jnp.maximum(total, spec.renorm_eps)
    if spec.renorm_eps_rule == "where_positive":
        return jnp.where(total > 0, total, 1.0)
    return total
