"""Reference of `expert_parallel_moe`: a routed layer whose tokens and experts lie on several ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics
from moecheck.spec import MoESpec

from . import moe_layer as layer
from ._errors import Errors, answer
from ._expert import ExpertArrays
from ._stores import EXACT, contract, rounded, stored, total
from ._variants import Noise
from .fused_experts import estimate as experts_estimate
from .fused_experts import fused_experts
from .moe_layer import Topk
from .topk_routing import topk_routing

__all__ = ["Noise", "estimate", "expert_parallel_moe", "ranks_of_experts", "tokens_of_ranks", "variants"]


def expert_parallel_moe(
    *,
    hidden_states: AnyArray,
    router_logits: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    spec: MoESpec,
    num_ranks: int = 1,
    rank_tokens: AnyArray | None = None,
    expert_placement: AnyArray | None = None,
    correction_bias: AnyArray | None = None,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    w13_scale: AnyArray | None = None,
    w2_scale: AnyArray | None = None,
    topk: Topk | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """y_t = sum over ranks p of sum over the slots s of t whose expert e lies on p of w_ts E_e(x_t); times r.

    Each rank chooses experts for its own tokens, sends (dispatches) a token to every rank that holds one of them,
    computes its own experts on all that came to it, and sends back what the token's rank adds up (combine).
    hidden_states: [T, H], first the tokens of rank 0. router_logits: [T, E]. w13: [E, 2I or I, H]. w2: [E, H, I].
    rank_tokens: [P] int, tokens of each rank, P = num_ranks; as evenly as possible without. expert_placement: [Q] int,
    the expert of each place, of which each rank has Q / P consecutive ones; an expert may have several places, its
    first counts here. 0, 1, ... without. correction_bias: [E]. w13_bias: [E, 2I or I]. w2_bias: [E, H]. w13_scale,
    w2_scale: of quantised weights, as in fused_experts. topk: weights and ids [T, k] used instead of routing.
    Returns [T, H] float64. Ties and NaN as in topk_routing and fused_experts.
    numerics: None for the mathematics, in which neither places nor orders count; else stores as in fused_experts, and
    by combine_order `rank` each rank's own sum is stored at `combine`, and the sum of these, kept in fp32, at `out`;
    other orders are of the slots that the token's rank adds up itself, all of them sent back.
    Sources: GShard (arXiv:2006.16668) section 3.2; DeepSeek-V3 (arXiv:2412.19437) sections 3.2 and 3.4, whose redundant
    experts are EPLB's `physical_to_logical_map` (deepseek-ai/EPLB).
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=EXACT)
    num_tokens, num_experts = router_logits.shape
    weights, ids = topk or topk_routing(router_logits=router_logits, spec=spec.routing, correction_bias=correction_bias)
    by_rank = stores.combine_order == "rank"
    partial = replace(stores, combine="fp32", combine_order="tree", out=stores.combine) if by_rank else stores
    place = ranks_of_experts(num_experts, num_ranks, expert_placement)
    y = np.zeros((num_tokens, hidden_states.shape[1]))
    for tokens in tokens_of_ranks(num_tokens, num_ranks, rank_tokens):
        destinations = range(num_ranks) if by_rank else (None,)
        for rank in destinations:
            y[tokens] += fused_experts(
                hidden_states=hidden_states[tokens],
                w13=w13,
                w2=w2,
                topk_weights=weights[tokens],
                topk_ids=ids[tokens] if rank is None else _on_rank(ids[tokens], place, rank),
                spec=spec.experts,
                w13_bias=w13_bias,
                w2_bias=w2_bias,
                w13_scale=w13_scale,
                w2_scale=w2_scale,
                numerics=partial,
            )
    y = rounded(y, stores.out)
    factor = layer.output_factor(spec.routing)
    return y if factor == 1.0 else rounded(y * factor, stores.out)


def estimate(
    *,
    hidden_states: AnyArray,
    router_logits: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    spec: MoESpec,
    num_ranks: int = 1,
    expert_placement: AnyArray | None = None,
    correction_bias: AnyArray | None = None,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    topk: Topk | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
    flips: bool = False,
    rows: bool = True,
    both: bool = False,
) -> Errors:
    """Value and error of a kernel's y: that of a whole layer, and by combine_order `rank` V_y = sum_p (V_p + a store).

    V_p: of the sum of rank p's experts, with the store at `combine`. Arguments as above and in moe_layer.estimate;
    which rank a token lies on changes nothing.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    topk = topk or topk_routing(router_logits=router_logits, spec=spec.routing, correction_bias=correction_bias)
    if stores.combine_order != "rank":
        return layer.estimate(
            hidden_states=hidden_states,
            router_logits=router_logits,
            w13=w13,
            w2=w2,
            spec=spec,
            w13_bias=w13_bias,
            w2_bias=w2_bias,
            topk=topk,
            numerics=stores,
            flips=flips,
            rows=rows,
            both=both,
        )
    weights, ids = topk
    place = ranks_of_experts(router_logits.shape[1], num_ranks, expert_placement)
    parts = [
        experts_estimate(
            hidden_states=hidden_states,
            w13=w13,
            w2=w2,
            topk_weights=weights,
            topk_ids=_on_rank(ids, place, rank),
            spec=spec.experts,
            w13_bias=w13_bias,
            w2_bias=w2_bias,
            numerics=replace(stores, combine="fp32", combine_order="tree", out=stores.combine),
            flips=flips,
            rows=rows,
            both=both,
            weights=layer.computed_weights(weights, stores),
        )
        for rank in range(num_ranks)
    ]
    answers = [_summed(parts, stores)]
    if both:
        answers.append(_summed([part.about_rounded for part in parts if part.about_rounded is not None], stores))
    factor = layer.output_factor(spec.routing)
    return answer(answers if factor == 1.0 else [layer.multiplied(y, factor, stores) for y in answers])


def variants(
    *,
    hidden_states: AnyArray,
    router_logits: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    spec: MoESpec,
    noise: Noise,
    correction_bias: AnyArray | None = None,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    topk: Topk | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """Outputs of simulated kernels of the contract, [V, T, H] float64: those of moe_layer, with the same arguments."""
    return layer.variants(
        hidden_states=hidden_states,
        router_logits=router_logits,
        w13=w13,
        w2=w2,
        spec=spec,
        noise=noise,
        correction_bias=correction_bias,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        topk=topk,
        numerics=numerics,
        dtype=dtype,
    )


def ranks_of_experts(num_experts: int, num_ranks: int, expert_placement: AnyArray | None = None) -> AnyArray:
    """[E] int: the rank of each expert's first place."""
    experts = np.arange(num_experts) if expert_placement is None else np.asarray(expert_placement)
    places = len(experts) // num_ranks
    first = [int(np.flatnonzero(experts == expert)[0]) for expert in range(num_experts)]
    return np.array(first, np.int64) // places


def tokens_of_ranks(num_tokens: int, num_ranks: int, rank_tokens: AnyArray | None = None) -> list[slice]:
    """The tokens of each rank, one after the other; without rank_tokens the first ranks may have one more."""
    each, more = divmod(num_tokens, num_ranks)
    counts = np.array([each + (rank < more) for rank in range(num_ranks)]) if rank_tokens is None else rank_tokens
    ends = np.cumsum(counts)
    return [slice(int(end - count), int(end)) for count, end in zip(counts, ends, strict=True)]


def _on_rank(ids: AnyArray, place: AnyArray, rank: int) -> AnyArray:
    """The ids of experts that lie on a rank, -1 for the others."""
    return np.where((ids >= 0) & (place[np.maximum(ids, 0)] == rank), ids, -1)


def _summed(parts: list[Errors], stores: Numerics) -> Errors:
    """The sum of the ranks' parts, stored at `out`."""
    first, *others = parts
    y, shared, sources = first.estimate, first.shared, first.sources
    for part in others:
        y = total(y, part.estimate)
        shared = None if shared is None or part.shared is None else shared + part.shared
        sources = (*sources, *part.sources)
    return replace(first, estimate=stored(y, stores.out), shared=shared, sources=sources, about_rounded=None)
