"""Reference of `moe_layer`: y = r * routed(x) + shared(x), from hidden states and router logits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from moecheck.formats import AnyArray, Float64, ulp
from moecheck.numerics import Numerics
from moecheck.spec import MoESpec, RoutingSpec

from ._activation import sigmoid
from ._errors import Errors, FactorError, answer, questions
from ._expert import ExpertArrays, expert_output
from ._projected import projected
from ._row_groups import whole
from ._shared_experts import gate_logit, needed, shared_estimates, shared_weights
from ._stores import (
    EXACT,
    Estimate,
    contract,
    decode,
    exact_linear_estimate,
    exactly,
    given,
    linear,
    rounded,
    stored,
    total,
)
from ._variants import Noise, expert_variants, finished_sum, products_with_errors
from .fused_experts import estimate as experts_estimate
from .fused_experts import fused_experts
from .fused_experts import variants as experts_variants
from .topk_routing import routed_factor, topk_routing

Topk = tuple[AnyArray, AnyArray]
ROUTING_ULPS = 2.0  # standard deviation, in fp32 ulps, of a routing weight that a kernel computed in fp32


def moe_layer(
    *,
    hidden_states: AnyArray,
    router_logits: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    spec: MoESpec,
    correction_bias: AnyArray | None = None,
    per_expert_scale: AnyArray | None = None,
    token_ids: AnyArray | None = None,
    tid2eid: AnyArray | None = None,
    shared_w13: AnyArray | None = None,
    shared_w2: AnyArray | None = None,
    shared_gate: AnyArray | None = None,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    latent_down: AnyArray | None = None,
    latent_up: AnyArray | None = None,
    topk: Topk | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """Layer output y = r sum_S w_i E_i(x) + shared(x) [* sigmoid(x . shared_gate)], wherever r is placed; times f.

    latent_experts: y = r latent_up (sum_S w_i E_i(latent_down x)) + shared(x), latent_down [X, H], latent_up [H, X] and
    the experts X wide, X = H without it. f: sum_factor.
    hidden_states: [T, H]. router_logits: [T, E]. w13: [E', 2I, X]. w2: [E', X, I], E' = E - num_zero_experts +
    num_fused_shared_experts: the fused shared experts, ids E, E + 1, ..., are the last rows. shared_w13: [2S, H].
    shared_w2: [H, S], computed by spec.shared, no biases. shared_gate: [H]. w13_bias: [E', 2I]. w2_bias: [E', X].
    correction_bias, per_expert_scale: [E]. token_ids, tid2eid: as in topk_routing. topk: (weights, ids) [T, k'] used
    instead of routing, scaled as the routing would (r inside for the placement `topk_weights`). Ids >= E -
    num_zero_experts are identity experts, E_i(x) = x. Returns [T, H] float64. Ties as in topk_routing; an id of -1
    contributes 0.
    numerics: None for the mathematics; else the experts round as in fused_experts, the identity and the shared experts'
    sums, what latent_up gives, r * routed, the total and f times it at `out`; the latent and the gate's logit at
    `gate_up`, its sigmoid at `act`, its product with the shared output at `weighted`.
    Sources: DeepSeek-V3 (arXiv:2412.19437) equations 12 to 16; Qwen2-MoE's gated shared expert (arXiv:2407.10671);
    LongCat-Flash's zero experts (arXiv:2509.01322); Nemotron-3's latent experts (transformers models/nemotron_h); sum
    factors of Grok-2 and of Cohere2-MoE's `average` (transformers models/cohere2_moe).
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=EXACT)
    x = decode(hidden_states)
    weights, ids = topk or topk_routing(
        router_logits=router_logits,
        spec=spec.routing,
        correction_bias=correction_bias,
        per_expert_scale=per_expert_scale,
        token_ids=token_ids,
        tid2eid=tid2eid,
    )
    num_experts = router_logits.shape[1]
    rows = hidden_states
    if spec.latent_experts:
        rows = rounded(linear(x, decode(needed("latent_down", latent_down))), stores.gate_up)
    y = fused_experts(
        hidden_states=rows,
        w13=w13,
        w2=w2,
        topk_weights=weights,
        topk_ids=_weight_rows(ids, num_experts, spec.routing),
        spec=spec.experts,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        numerics=stores,
    )
    if spec.latent_experts:
        y = rounded(linear(y, decode(needed("latent_up", latent_up))), stores.out)
    shared = None
    if spec.shared_experts != "none":
        shared = expert_output(x, shared_weights(shared_w13, shared_w2), spec.shared, stores)
    return finished(
        y,
        x=x,
        topk=(weights, ids),
        num_experts=num_experts,
        shared=shared,
        shared_gate=shared_gate,
        spec=spec,
        stores=stores,
    )


def variants(
    *,
    hidden_states: AnyArray,
    router_logits: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    spec: MoESpec,
    noise: Noise,
    correction_bias: AnyArray | None = None,
    per_expert_scale: AnyArray | None = None,
    token_ids: AnyArray | None = None,
    tid2eid: AnyArray | None = None,
    shared_w13: AnyArray | None = None,
    shared_w2: AnyArray | None = None,
    shared_gate: AnyArray | None = None,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    latent_down: AnyArray | None = None,
    latent_up: AnyArray | None = None,
    topk: Topk | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """Outputs of simulated kernels of the contract, [V, T, H] float64, for the reference's ids; weights as above.

    Other arguments as above.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    x = decode(hidden_states)
    weights, ids = topk or topk_routing(
        router_logits=router_logits,
        spec=spec.routing,
        correction_bias=correction_bias,
        per_expert_scale=per_expert_scale,
        token_ids=token_ids,
        tid2eid=tid2eid,
    )
    computed = computed_weights(weights, stores)
    drawn = computed.value + np.sqrt(computed.dense) * noise.normal((noise.variants, *computed.value.shape))
    num_experts = router_logits.shape[1]
    simulated = partial(
        experts_variants,
        w13=w13,
        w2=w2,
        topk_ids=_weight_rows(ids, num_experts, spec.routing),
        spec=spec.experts,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        numerics=stores,
    )
    if spec.latent_experts:
        down, up = decode(needed("latent_down", latent_down)), decode(needed("latent_up", latent_up))
        one = noise._replace(variants=1)
        latents = rounded(products_with_errors(x, down, stores, noise), stores.gate_up)
        sums = [
            simulated(hidden_states=latent, topk_weights=w[None], noise=one)[0]
            for latent, w in zip(latents, drawn, strict=True)
        ]
        routed = np.concatenate([rounded(products_with_errors(y, up, stores, one), stores.out) for y in sums])
    else:
        routed = simulated(hidden_states=hidden_states, topk_weights=drawn, noise=noise)
    shared = None
    if spec.shared_experts != "none":
        shared = expert_variants(x, shared_weights(shared_w13, shared_w2), spec.shared, stores, noise)
    outputs = [
        finished(
            y,
            x=x,
            topk=(drawn[i], ids),
            num_experts=num_experts,
            shared=None if shared is None else shared[i],
            shared_gate=shared_gate,
            spec=spec,
            stores=stores,
        )
        for i, y in enumerate(routed)
    ]
    return finished_sum(np.stack(outputs), stores.out, noise) if stores.out == "fp32" else np.stack(outputs)


def finished(
    y: Float64,
    *,
    x: Float64,
    topk: Topk,
    num_experts: int,
    shared: Float64 | None,
    shared_gate: AnyArray | None,
    spec: MoESpec,
    stores: Numerics,
) -> Float64:
    """The layer's output from its routed experts' sum y and its shared experts' output, both [T, H] float64.

    x: [T, H] float64. topk: weights and ids [T, k']. shared: None where the spec has none. Returns [T, H].
    """
    if spec.routing.num_zero_experts:
        identity = rounded(x * _identity_weight(*topk, num_experts, spec.routing), stores.out)
        y = rounded(y + identity, stores.out)
    if output_factor(spec.routing) != 1.0:
        y = rounded(y * output_factor(spec.routing), stores.out)
    if shared is not None:
        if spec.shared_experts == "gated":
            logit = rounded(gate_logit(x, shared_gate), stores.gate_up)
            shared = rounded(shared * rounded(sigmoid(logit), stores.act), stores.weighted)
        y = rounded(y + rounded(shared, stores.out), stores.out)
    return y if spec.sum_factor == 1.0 else rounded(y * spec.sum_factor, stores.out)


def estimate(
    *,
    hidden_states: AnyArray,
    router_logits: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    spec: MoESpec,
    correction_bias: AnyArray | None = None,
    per_expert_scale: AnyArray | None = None,
    token_ids: AnyArray | None = None,
    tid2eid: AnyArray | None = None,
    shared_w13: AnyArray | None = None,
    shared_w2: AnyArray | None = None,
    shared_gate: AnyArray | None = None,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    latent_down: AnyArray | None = None,
    latent_up: AnyArray | None = None,
    topk: Topk | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
    flips: bool = False,
    rows: bool = True,
    both: bool = False,
) -> Errors:
    """Value and error of a kernel's y, for the reference's ids. flips: about the reference rounded as in `numerics`.

    rows, both: as in fused_experts.estimate.
    V_y = f^2 (r^2 V_routed + V_shared) + the stores above, V_routed of latent experts being V_up(sum). Routing weights
    that the kernel computes are off by ROUTING_ULPS fp32 ulps, + one rounding if `scores` are stored low; so are those
    given as `topk`, which stand for a choice of the kernel's own. Other arguments as above.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    x = decode(hidden_states)
    weights, ids = topk or topk_routing(
        router_logits=router_logits,
        spec=spec.routing,
        correction_bias=correction_bias,
        per_expert_scale=per_expert_scale,
        token_ids=token_ids,
        tid2eid=tid2eid,
    )
    computed = computed_weights(weights, stores)
    num_experts = router_logits.shape[1]
    hidden = None
    if spec.latent_experts:
        down = decode(needed("latent_down", latent_down))
        hidden = exact_linear_estimate(x, whole(x, down), accumulate=stores.accumulate)
    routed = experts_estimate(
        hidden_states=hidden_states if hidden is None else hidden.value,
        w13=w13,
        w2=w2,
        topk_weights=weights,
        topk_ids=_weight_rows(ids, num_experts, spec.routing),
        spec=spec.experts,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        numerics=stores,
        flips=flips,
        rows=rows,
        both=both,
        weights=computed,
        hidden=hidden,
    )
    asked = questions(flips=flips, rows=rows, both=both)
    answers = [routed] if routed.about_rounded is None else [routed, routed.about_rounded]
    if spec.latent_experts:
        up = decode(needed("latent_up", latent_up))
        answers = [projected(y, up, stores) for y in answers]
    if spec.routing.num_zero_experts:
        kept = _identity_estimate(computed, ids, num_experts, spec.routing)
        answers = [_with_identity(y, x, kept, stores) for y in answers]
    factor = output_factor(spec.routing)
    if factor != 1.0:
        answers = [multiplied(y, factor, stores) for y in answers]
    if spec.shared_experts != "none":
        extra = shared_estimates(x, shared_w13, shared_w2, shared_gate, spec, stores, asked)
        answers = [_added(y, more, stores) for y, more in zip(answers, extra, strict=True)]
    if spec.sum_factor != 1.0:
        answers = [multiplied(y, spec.sum_factor, stores) for y in answers]
    return answer(answers)


def _with_identity(routed: Errors, x: Float64, weight: Estimate, stores: Numerics) -> Errors:
    """The experts' sum and that of the zero experts, w x, stored at `out`. weight: w, [T, 1], without flips."""
    y = routed.estimate
    identity = stored(given(weight, flips=y.rare is not None).scaled(x), stores.out)
    y = stored(total(y, identity), stores.out)
    if routed.shared is None:
        return replace(routed, estimate=y)
    source = FactorError(rows=np.arange(len(x)), variance=weight.dense[:, 0], along=x)
    shared = routed.shared + np.square(x) * weight.dense
    return replace(routed, estimate=y, shared=shared, sources=(*routed.sources, source))


def multiplied(routed: Errors, factor: float, stores: Numerics) -> Errors:
    """A sum times r or f, stored at `out`."""
    y = stored(routed.estimate.scaled(factor), stores.out)
    shared = None if routed.shared is None else routed.shared * factor**2
    return replace(routed, estimate=y, shared=shared, sources=tuple(s.scaled(factor) for s in routed.sources))


def _added(routed: Errors, extra: Errors, stores: Numerics) -> Errors:
    """The sum of the routed and the shared experts, stored at `out`."""
    y = stored(total(routed.estimate, extra.estimate), stores.out)
    shared = None if routed.shared is None or extra.shared is None else routed.shared + extra.shared
    return replace(routed, estimate=y, shared=shared, sources=(*routed.sources, *extra.sources))


def computed_weights(weights: Float64, stores: Numerics) -> Estimate:
    """Routing weights as a kernel computes them."""
    computed = exactly(decode(weights), flips=False)
    dense = np.square(ROUTING_ULPS * ulp(computed.value, "fp32"))
    if stores.scores != "fp32":  # the reference does not round scores, so a kernel's are off by a whole rounding
        dense += np.square(ulp(computed.value, stores.scores)) / 12.0
    return computed._replace(dense=dense)


def _identity_estimate(weights: Estimate, ids: AnyArray, num_experts: int, routing: RoutingSpec) -> Estimate:
    """Each token's weight on zero experts, [T, 1]."""
    parts = (None if part is None else _identity_weight(part, ids, num_experts, routing) for part in weights)
    return Estimate(*parts)  # type: ignore[arg-type]  # as in weights


def _weight_rows(ids: AnyArray, num_experts: int, routing: RoutingSpec) -> AnyArray:
    """Row of w13 for each id: -1 for zero experts, E + j moved down to the rows after the real experts."""
    real = num_experts - routing.num_zero_experts
    rows = np.where(ids >= num_experts, ids - routing.num_zero_experts, ids)
    return np.where((ids >= real) & (ids < num_experts), -1, rows)


def _identity_weight(weights: AnyArray, ids: AnyArray, num_experts: int, routing: RoutingSpec) -> Float64:
    """Sum of each token's weights (or their variances) on zero experts, [T, 1]."""
    zero = (ids >= num_experts - routing.num_zero_experts) & (ids < num_experts)
    total: Float64 = np.sum(np.where(zero, decode(weights), 0.0), axis=1, keepdims=True)
    return total


def output_factor(routing: RoutingSpec) -> float:
    """What multiplies the sum over the slots: r, unless it is already inside the weights."""
    return 1.0 if routing.scaling_placement == "topk_weights" else routed_factor(routing)
