"""The choice and the weights of experts inside a Pallas kernel: rounds of maximum, index and mask in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import moecheck

SELECTIONS = ("topk",)


def check_routing(spec: moecheck.RoutingSpec) -> None:
    """Raise Unsupported for a routing that the kernel has no code for."""
    if spec.selection not in SELECTIONS:
        raise moecheck.Unsupported(f"implements selection='topk', not {spec.selection!r}")
    for field, supported in (("num_fused_shared_experts", 0), ("num_zero_experts", 0), ("per_expert_scale", False)):
        if getattr(spec, field) != supported:
            raise moecheck.Unsupported(f"implements {field}={supported!r}, not {getattr(spec, field)!r}")


def choose(logits: jax.Array, bias: jax.Array | None, spec: moecheck.RoutingSpec) -> tuple[jax.Array, jax.Array]:
    """Weights [n, top_k] float32 and ids [n, top_k] int32 of rows of logits [n, E] float32; ties to the lowest id.

    bias: [1, E] float32, None where the spec has none. Logits are finite.
    """
    if spec.softcap is not None:
        logits = spec.softcap * jnp.tanh(logits / spec.softcap)
    if spec.correction_bias == "logits":
        logits = logits + jnp.asarray(bias)
    scores = _scores(logits, spec)
    choice = logits if spec.softmax_over_selected or spec.choose_by_logits else scores
    if spec.correction_bias == "select":
        choice = choice + jnp.asarray(bias)
    if spec.num_expert_groups > 1:
        choice = _of_best_groups(choice, spec)
    values, ids = _best(choice, logits if spec.softmax_over_selected else scores, spec.top_k)
    if spec.softmax_over_selected:
        values = jnp.exp(values - jnp.max(values, axis=1, keepdims=True))
        values = values / jnp.sum(values, axis=1, keepdims=True)
    if spec.renormalize:
        values = values / _denominator(values, spec)
    if spec.scaling_placement == "topk_weights" and (spec.renormalize or not spec.scaling_needs_renormalize):
        values = values * spec.routed_scaling_factor
    return values, ids


def _scores(logits: jax.Array, spec: moecheck.RoutingSpec) -> jax.Array:
    if spec.scoring == "softmax":
        powers = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
        return powers / jnp.sum(powers, axis=1, keepdims=True)
    if spec.scoring == "sigmoid":
        return jax.nn.sigmoid(logits)
    return jnp.sqrt(jax.nn.softplus(logits))


def _best(choice: jax.Array, values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Values [n, E] and ids where `choice` [n, E] is largest: [n, count] each, in descending order of choice."""
    column = jax.lax.broadcasted_iota(jnp.int32, choice.shape, 1)
    taken, ids = [], []
    for _ in range(count):
        largest = jnp.max(choice, axis=1, keepdims=True)
        index = jnp.min(jnp.where(choice == largest, column, choice.shape[1]), axis=1, keepdims=True)
        here = column == index
        taken.append(jnp.sum(jnp.where(here, values, 0.0), axis=1, keepdims=True))
        ids.append(index)
        choice = jnp.where(here, -jnp.inf, choice)
    return jnp.concatenate(taken, axis=1), jnp.concatenate(ids, axis=1)


def _of_best_groups(choice: jax.Array, spec: moecheck.RoutingSpec) -> jax.Array:
    """The choice scores with those of other groups than the best topk_groups masked."""
    groups = spec.num_expert_groups
    each = choice.shape[1] // groups
    parts = [choice[:, g * each : (g + 1) * each] for g in range(groups)]
    most = 1 if spec.group_score == "max" else 2
    scores = jnp.concatenate([jnp.sum(_best(p, p, most)[0], axis=1, keepdims=True) for p in parts], axis=1)
    _, best = _best(scores, scores, spec.topk_groups)
    fill = -jnp.inf if spec.group_mask == "neg_inf" else 0.0
    kept = [jnp.max(jnp.where(best == g, 1, 0), axis=1, keepdims=True) > 0 for g in range(groups)]
    return jnp.concatenate([jnp.where(keep, p, fill) for keep, p in zip(kept, parts, strict=True)], axis=1)


def _denominator(weights: jax.Array, spec: moecheck.RoutingSpec) -> jax.Array:
    total = jnp.sum(weights**spec.renorm_norm if spec.renorm_norm != 1.0 else weights, axis=1, keepdims=True)
    if spec.renorm_norm != 1.0:
        total = total ** (1 / spec.renorm_norm)
    if spec.renorm_eps_rule == "add":
        return total + spec.renorm_eps
    if spec.renorm_eps_rule == "clamp_min":
        return jnp.maximum(total, spec.renorm_eps)
    if spec.renorm_eps_rule == "where_positive":
        return jnp.where(total > 0, total, 1.0)
    return total
