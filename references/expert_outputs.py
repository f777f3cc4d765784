"""Reference of `expert_outputs`: each token's experts on their own, neither weighted nor added up."""

from __future__ import annotations

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._errors import Errors, SharedError, answer, questions
from ._expert import ExpertArrays, expert_estimates, expert_output
from ._experts_of_slots import batches_of_experts, blocks, rows_of_experts
from ._stores import EXACT, Estimate, contract, decode, exact_in, exactly, rounded, stored
from .fused_experts import grouped, weights_of


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
    rows: bool = True,
    both: bool = False,
) -> Errors:
    """Value and error of a kernel's y, a row for each slot: [T k, H].

    flips: about the reference rounded as in `numerics`. rows, both: as in fused_experts.estimate.
    V_y as of an expert, and a store. NaN where a slot has no expert. Other arguments as above.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    x = decode(hidden_states)
    asked = questions(flips=flips, rows=rows, both=both)
    shape = (topk_ids.size, x.shape[1])
    parts = [[np.full(shape, np.nan), *(np.zeros(shape) for _ in range(3 if q.flips else 1))] for q in asked]
    of_rows = [np.zeros(shape) if q.rows else None for q in asked]
    sources: list[list[SharedError]] = [[] for _ in asked]
    for tokens, slots, experts in batches_of_experts(topk_ids, expert_map):
        arrays = grouped(experts, w13, w2, w13_bias, w2_bias)
        at, ones = tokens * topk_ids.shape[1] + slots, np.ones(len(tokens))
        exact = [exactly(x[tokens], flips=q.flips) for q in asked]
        outputs = expert_estimates(exact, arrays, spec, stores, asked)
        for (z, v_h, step, shared), of_question, of_row, its in zip(outputs, parts, of_rows, sources, strict=True):
            last = z if exact_in(stores.per_expert, stores.out) else stored(z, stores.out)
            for part, values in zip(of_question, last, strict=False):
                part[at] = values
            if of_row is not None and v_h is not None and step is not None:
                of_row[at] = shared
                its.append(SharedError(rows=at, scale=ones, variance=v_h, step=step, groups=arrays.w2))
    answers = zip(parts, of_rows, sources, asked, strict=True)
    return answer([Errors(Estimate(*part), shared, tuple(its), rows=q.rows) for part, shared, its, q in answers])
