"""Expert-parallel MoE in JAX: shard_map over a mesh of ranks, ragged_dot for each rank's experts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import moecheck
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from moecheck.numerics import INPUT

from ._expert_rows import expert_rows, of_rank
from ._ranks import AXIS, Placed, mesh_of, physical_of, placed, tokens_of_ranks
from ._stores import stored
from .ragged_dot import TRANSPOSED
from .routing import topk_routing

SHARDED, REPLICATED = PartitionSpec(AXIS), PartitionSpec()  # type: ignore[no-untyped-call]  # jax leaves it untyped


@moecheck.kernel(
    "expert_parallel_moe",
    backend="jax",
    name="jax/epmoe",
    numerics=moecheck.Numerics(act_times_up=INPUT, per_expert=INPUT),
    deterministic=True,
    weight_layout=TRANSPOSED,
    devices=4,
)
def epmoe(
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
) -> jax.Array:
    """Tokens lie on their ranks: one all-to-all sends a row for each slot, another brings its expert's output back.

    hidden_states: [T, H]. router_logits: [T, E] float32. w13: [E, H, 2I or I]. w2: [E, I, H]. rank_tokens: [P], tokens
    of each rank. expert_placement: [Q], the expert of each place. Others as in fused_experts. Returns [T, H].
    """
    mesh = mesh_of(num_ranks)
    experts = placed(w13, w2, w13_bias, w2_bias, expert_placement)
    token, valid = tokens_of_ranks(len(hidden_states), num_ranks, rank_tokens)
    out = _compiled(_exchanged, mesh, spec, SHARDED)(
        _and_zeros(hidden_states)[token],
        _and_zeros(router_logits)[token],
        valid,
        token,
        experts,
        correction_bias,
        physical_of(expert_placement, router_logits.shape[1]),
    )
    place = jnp.zeros(len(hidden_states), jnp.int32).at[token].set(jnp.arange(len(token)), mode="drop")
    own: jax.Array = jax.device_put(out, jax.devices()[0])[place]
    return own


@moecheck.kernel(
    "expert_parallel_moe",
    backend="jax",
    name="jax/epmoe_psum",
    numerics=moecheck.Numerics(act_times_up=INPUT),
    deterministic=True,
    weight_layout=TRANSPOSED,
    devices=4,
)
def epmoe_psum(
    *,
    hidden_states: jax.Array,
    router_logits: jax.Array,
    w13: jax.Array,
    w2: jax.Array,
    num_ranks: int,
    correction_bias: jax.Array | None = None,
    w13_bias: jax.Array | None = None,
    w2_bias: jax.Array | None = None,
    expert_placement: jax.Array | None = None,
    spec: moecheck.MoESpec,
) -> jax.Array:
    """Every rank has all tokens and computes its own experts; their sums are added in fp32. Shapes as above."""
    mesh = mesh_of(num_ranks)
    experts = placed(w13, w2, w13_bias, w2_bias, expert_placement)
    tokens = len(hidden_states)
    out = _compiled(_reduced, mesh, spec, REPLICATED)(
        _and_zeros(hidden_states),
        _and_zeros(router_logits),
        jnp.arange(tokens + 1) < tokens,
        jnp.arange(tokens + 1),
        experts,
        correction_bias,
        physical_of(expert_placement, router_logits.shape[1]),
    )
    own: jax.Array = jax.device_put(out, jax.devices()[0])[:tokens]
    return own


def _and_zeros(rows: jax.Array) -> jax.Array:
    """The rows of the tokens, and one of zeros for a place that has none: a rank computes on one row at least."""
    return jnp.pad(rows, ((0, 1), (0, 0)))


Body = Callable[..., jax.Array]


@functools.lru_cache(maxsize=64)
def _compiled(body: Body, mesh: Mesh, spec: moecheck.MoESpec, tokens: PartitionSpec) -> Callable[..., jax.Array]:
    """The jitted shard_map of a rank's body. tokens: how the arrays that have a row for each token are sharded."""
    if spec.experts.weight_on_input:
        raise moecheck.Unsupported("weights the experts' outputs, not their inputs")
    specs = (tokens, tokens, tokens, tokens, SHARDED, REPLICATED, REPLICATED)
    mapped = jax.shard_map(
        functools.partial(body, spec=spec, num_ranks=mesh.size),
        mesh=mesh,
        in_specs=specs,
        out_specs=tokens,
        check_vma=False,
    )
    shardings = jax.tree.map(lambda part: NamedSharding(mesh, part), specs)

    def run(*arguments: object) -> jax.Array:
        out: jax.Array = jitted(
            *(jax.device_put(value, where) for value, where in zip(arguments, shardings, strict=True))
        )
        return out

    jitted = jax.jit(mapped)
    return run


def _choose(
    logits: jax.Array,
    valid: jax.Array,
    token: jax.Array,
    bias: jax.Array | None,
    physical: tuple[jax.Array, jax.Array],
    spec: moecheck.MoESpec,
) -> tuple[jax.Array, jax.Array]:
    """Weights [t, top_k] float32 and the place of each slot's expert, -1 for tokens that do not count.

    Of an expert's copies a token takes one by its number.
    """
    if spec.routing.scaling_placement != "topk_weights":
        raise moecheck.Unsupported("scales the routing weights, not the sum")
    weights, ids = topk_routing(router_logits=logits, correction_bias=bias, spec=spec.routing)
    places, copies = physical
    place = places[ids, token[:, None] % copies[ids]]
    return weights, jnp.where(valid[:, None], place, -1)


def _exchanged(
    hidden: jax.Array,
    logits: jax.Array,
    valid: jax.Array,
    token: jax.Array,
    experts: Placed,
    bias: jax.Array | None,
    physical: tuple[jax.Array, jax.Array],
    *,
    spec: moecheck.MoESpec,
    num_ranks: int,
) -> jax.Array:
    """One rank's tokens [t, H], by two all-to-alls. A token has at most min(top_k, places) slots on a rank."""
    weights, place = _choose(logits, valid, token, bias, physical, spec)
    (tokens, top_k), local = place.shape, len(experts.w13)
    room = tokens * min(top_k, local)
    place = place.ravel()
    to = jnp.where(place >= 0, place // local, num_ranks)  # num_ranks: nowhere
    order = jnp.argsort(to, stable=True)
    before = jnp.searchsorted(to[order], to[order])
    row = jnp.zeros_like(to).at[order].set((jnp.arange(len(to)) - before).astype(to.dtype))

    sent = jnp.zeros((num_ranks, room, hidden.shape[1]), hidden.dtype)
    sent = sent.at[to, row].set(jnp.repeat(hidden, top_k, axis=0), mode="drop")
    ids = jnp.full((num_ranks, room), local, jnp.int32).at[to, row].set(place % local, mode="drop")
    come = functools.partial(jax.lax.all_to_all, axis_name=AXIS, split_axis=0, concat_axis=0)
    rows = come(sent).reshape(num_ranks * room, hidden.shape[1])
    computed = stored(expert_rows(rows, come(ids).ravel(), experts, spec.experts), hidden.dtype)
    back = come(computed.reshape(num_ranks, room, -1)).astype(jnp.float32)
    slots = back.at[to, row].get(mode="fill", fill_value=0).reshape(tokens, top_k, -1)
    return stored((slots * weights[..., None]).sum(axis=1), hidden.dtype)


def _reduced(
    hidden: jax.Array,
    logits: jax.Array,
    valid: jax.Array,
    token: jax.Array,
    experts: Placed,
    bias: jax.Array | None,
    physical: tuple[jax.Array, jax.Array],
    *,
    spec: moecheck.MoESpec,
    num_ranks: int,
) -> jax.Array:
    """All tokens [T, H] on every rank, by one sum over the ranks."""
    del num_ranks
    weights, place = _choose(logits, valid, token, bias, physical, spec)
    ids = of_rank(place, jax.lax.axis_index(AXIS), len(experts.w13))
    rows = expert_rows(jnp.repeat(hidden, place.shape[1], axis=0), ids.ravel(), experts, spec.experts)
    own = (rows.reshape(*place.shape, -1) * weights[..., None]).sum(axis=1)
    total: jax.Array = jax.lax.psum(own, AXIS)  # type: ignore[no-untyped-call]  # jax leaves it untyped
    return stored(total, hidden.dtype)
