"""Reference of `expert_outputs`: each token's experts on their own, neither weighted nor added up."""

from __future__ import annotations

from functools import partial

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._errors import Errors, SharedError
from ._expert import ExpertArrays, expert_estimate, expert_output
from ._experts_of_slots import rows_of_experts
from ._stores import EXACT, Estimate, contract, decode, exact_in, exactly, rounded, stored
from .fused_experts import blocks, decoded, weights_of


def expert_outputs(
    *,
    hidden_states: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    topk_ids: AnyArray,
    spec: ExpertSpec,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    expert_map: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """y_ts = E_e(x_t), e = topk_ids[t, s]: what fused_experts weighs and adds up (SGLang's `no_combine`).

    Arguments as in fused_experts, without weights; spec.weight_on_input does not concern it. Returns [T, k, H] float64,
    NaN for a slot whose id is -1 or mapped to -1: such a slot may hold anything.
    numerics: None for the mathematics; else rounds at the stores of an expert and at `out`.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=EXACT)
    x = decode(hidden_states)
    y = np.full((*topk_ids.shape, x.shape[1]), np.nan)
    for expert, tokens, slots in rows_of_experts(topk_ids, expert_map):
        weights = weights_of(expert, w13, w2, w13_bias, w2_bias)
        for part in blocks(len(tokens)):
            z = expert_output(x[tokens[part]], weights, spec, stores)
            y[tokens[part], slots[part]] = rounded(z, stores.out)
    return y


def estimate(
    *,
    hidden_states: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    topk_ids: AnyArray,
    spec: ExpertSpec,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    expert_map: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
    flips: bool = False,
) -> Errors:
    """Value and error of a kernel's y, a row for each slot: [T k, H]. flips: about the reference rounded as in `numerics`.

    V_y as of an expert, and a store. NaN where a slot has no expert. Other arguments as above.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    x = decode(hidden_states)
    shape = (topk_ids.size, x.shape[1])
    parts = [np.full(shape, np.nan), *(np.zeros(shape) for _ in range(3 if flips else 1))]
    shared = np.zeros(shape)
    sources = list[SharedError]()
    for expert, tokens, slots in rows_of_experts(topk_ids, expert_map):
        weights = weights_of(expert, w13, w2, w13_bias, w2_bias)
        for part in blocks(len(tokens)):
            rows = tokens[part] * topk_ids.shape[1] + slots[part]
            y = expert_estimate(exactly(x[tokens[part]], flips=flips), weights, spec, stores)
            assert y.v_h is not None and y.step is not None and y.shared is not None  # noqa: PT018  # all three or none
            z = y.z if exact_in(stores.per_expert, stores.out) else stored(y.z, stores.out)
            for whole, values in zip(parts, z, strict=False):
                whole[rows] = values
            shared[rows] = y.shared
            scale = np.ones(len(rows))
            matrix = partial(decoded, w2, expert)
            sources.append(SharedError(rows=rows, scale=scale, variance=y.v_h, step=y.step, matrix=matrix))
    return Errors(Estimate(*parts), shared, tuple(sources))
