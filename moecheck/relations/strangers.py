"""What is nobody's business stays so: NaN in one token, in padding rows and in experts that nobody chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moecheck.cases import Case
from moecheck.checks.judge import held_rows
from moecheck.formats import AnyArray
from moecheck.ops import LAYERS
from moecheck.relations.premises import (
    declares_determinism,
    finite_inputs,
    float_scales,
    has_spare_expert,
    no_biases,
    plain_experts,
    tokens,
)
from moecheck.relations.relation import Call, Calls, Inputs, Pair, Trial, relation
from moecheck.relations.rows import DATA, EVERY, count_rows, take_rows

PADDING = 5
GARBAGE = 2.0**12
EXPERT_ARRAYS = ("w13", "w2", "w13_bias", "w2_bias")
EXPERT_SCALES = ("w13_scale", "w2_scale")  # in the place of weights that are codes


@relation(
    "a token of NaN changes no other token",
    ops=tuple(DATA),
    premises=(tokens(2), finite_inputs),
    keeps_shapes=True,
    capability="nan_isolation",
)
def nan_token(case: Case, inputs: Inputs) -> Trial:
    """One row of the data is NaN; the others keep what they had. Its own row may hold anything."""
    name, count = DATA[case.op], count_rows(case, inputs)
    victim = count // 3
    data = inputs[name].copy()
    data[victim] = np.nan
    others = np.flatnonzero(np.arange(count) != victim)
    return Trial(
        calls=(Call(case=case, inputs={**inputs, name: data}),),
        pairs=lambda calls: (_undisturbed(calls, others),),
    )


def _undisturbed(calls: Calls, others: AnyArray) -> Pair:
    """The other rows against the undisturbed call, whose own sigma is that of both."""
    return Pair(
        wanted=calls.outputs[0][others],
        got=calls.outputs[1][others],
        allowed=lambda: np.sqrt(2.0) * calls.allowed(0)[others],
    )


@relation(
    "a token of zeros gives zeros",
    ops=("act_and_mul", "fused_experts", *LAYERS, "grouped_gemm"),
    premises=(tokens(2), no_biases),
    exact=lambda _: True,
    keeps_shapes=True,
)
def zero_token(case: Case, inputs: Inputs) -> Trial:
    """Without biases every expert maps zero to zero, and so does each of a layer's other parts."""
    name, count = DATA[case.op], count_rows(case, inputs)
    data = inputs[name].copy()
    data[count // 2] = 0
    rows = [count // 2]

    def pairs(calls: Calls) -> tuple[Pair, ...]:
        got = calls.outputs[1][rows]
        return (Pair(wanted=np.zeros_like(got), got=got, allowed=lambda: np.zeros_like(got)),)

    return Trial(calls=(Call(case=case, inputs={**inputs, name: data}),), pairs=pairs)


@relation(
    "padding rows (ids of -1) behind the tokens change none of them, whatever they hold",
    ops=("fused_experts",),
    premises=(tokens(2),),
    capability="padding_independence",
)
def padding_rows(case: Case, inputs: Inputs) -> Trial:
    """Rows of NaN whose ids are -1 follow, as where a batch is padded to a captured size."""
    count = count_rows(case, inputs)
    call = take_rows(case, inputs, np.concatenate([np.arange(count), np.zeros(PADDING, np.intp)]))
    padded = dict(call.inputs)
    padded["hidden_states"][count:] = np.nan
    padded["topk_ids"][count:] = -1
    others = np.arange(count)
    return Trial(
        calls=(replace(call, inputs=padded),),
        pairs=lambda calls: (_undisturbed(calls, others),),
    )


@relation(
    "an expert that no token chose may hold any weights",
    ops=("fused_experts",),
    premises=(plain_experts, has_spare_expert, float_scales),
    exact=declares_determinism,
    keeps_shapes=True,
)
def unused_experts(case: Case, inputs: Inputs) -> Trial:
    """The tokens of one expert go to another one instead, and its weights become those of a neighbour, 16 times."""

    def strange(array: AnyArray, unused: int) -> AnyArray:
        return np.asarray(array[unused - 1] * array.dtype.type(16))

    return _with_unused_expert(case, inputs, strange)


@relation(
    "an expert that no token chose may hold NaN",
    ops=("fused_experts",),
    premises=(plain_experts, has_spare_expert, float_scales),
    keeps_shapes=True,
    capability="nan_weights_isolation",
    bitwise=True,
)
def unused_experts_of_nan(case: Case, inputs: Inputs) -> Trial:
    """As above, with NaN. Only reported: kernels that compute all experts and mask are right where weights are numbers.

    jax.lax.ragged_dot does so on a CPU.
    """
    trial = _with_unused_expert(case, inputs, lambda array, unused: np.full_like(array[unused], np.nan))

    def pairs(calls: Calls) -> tuple[Pair, ...]:
        (pair,) = trial.pairs(calls)
        return (replace(pair, allowed=lambda: np.full(pair.got.shape, np.inf)),)

    return replace(trial, pairs=pairs)


@relation(
    "what lies behind an expert's rows changes none of them",
    ops=("batched_experts",),
    premises=(tokens(1),),
    exact=declares_determinism,
    keeps_shapes=True,
)
def rows_beyond_counts(case: Case, inputs: Inputs) -> Trial:
    """Large numbers there instead of the NaN of the case, which a maximum may pass over."""
    held = held_rows(inputs)
    data = inputs["hidden_states"].copy()
    data[~held.reshape(data.shape[:2])] = GARBAGE
    return Trial(
        calls=(Call(case=case, inputs={**inputs, "hidden_states": data}),),
        pairs=lambda calls: (_undisturbed(calls, np.flatnonzero(held)),),
    )


def _with_unused_expert(case: Case, inputs: Inputs, poison: Callable[[AnyArray, int], AnyArray]) -> Trial:
    unused = case.num_experts - 1
    plain = {**inputs, "topk_ids": _without_expert(inputs["topk_ids"], unused, case.num_experts)}
    poisoned = dict(plain)
    names = (*EXPERT_SCALES, "w13_bias", "w2_bias") if "w13_scale" in inputs else EXPERT_ARRAYS
    for name in names:
        if name in inputs:
            poisoned[name] = inputs[name].copy()
            poisoned[name][unused] = poison(inputs[name], unused)
    return Trial(
        calls=(Call(case=case, inputs=plain), Call(case=case, inputs=poisoned)),
        pairs=lambda calls: (_twice_the_first(calls),),
    )


def _twice_the_first(calls: Calls) -> Pair:
    """Calls 1 and 2 with the sigma of call 1: that of call 2 is not defined where NaN lies in its inputs."""
    return Pair(wanted=calls.outputs[1], got=calls.outputs[2], allowed=lambda: np.sqrt(2.0) * calls.allowed(1)[EVERY])


def _without_expert(ids: AnyArray, expert: int, num_experts: int) -> AnyArray:
    """The ids with `expert` replaced by the lowest one that the token does not have."""
    changed = ids.copy()
    for token, slot in np.argwhere(ids == expert):
        free = np.setdiff1d(np.arange(num_experts), [expert, *changed[token]])
        changed[token, slot] = free[0]
    return changed
