"""A token's output does not depend on its place in the batch, nor on who else is in it."""

from __future__ import annotations

import numpy as np

from moecheck.cases import Case
from moecheck.formats import Float64
from moecheck.ops import LAYERS
from moecheck.relations.premises import declares_batch_invariance, tokens
from moecheck.relations.relation import Calls, Inputs, Pair, Trial, relation
from moecheck.relations.rows import EVERY, ROW_OPS, count_rows, like_the_case, take_rows

CROWD = 193  # more rows of one expert than any usual block has, and a tail
ALONE = 4
TOKEN_OPS = ("topk_routing", "fused_experts", *LAYERS, "unpermute")


@relation(
    "the order of the tokens changes no token's output",
    ops=("topk_routing", "act_and_mul", "fused_experts", *LAYERS, "unpermute", "permute", "shuffle_rows"),
    premises=(tokens(2),),
    exact=declares_batch_invariance,
    keeps_shapes=True,
)
def token_permutation(case: Case, inputs: Inputs) -> Trial:
    """The rows in reverse; where there is a middle one, it changes places too, so that no row keeps its own."""
    order = np.arange(count_rows(case, inputs))[::-1].copy()
    if len(order) % 2 and len(order) > 1:
        middle = len(order) // 2
        order[[middle, middle + 1]] = order[[middle + 1, middle]]
    call = take_rows(case, inputs, order)
    return Trial(calls=(call,), pairs=lambda calls: (like_the_case(calls, 1, rows=order),))


@relation(
    "equal tokens have equal outputs",
    ops=("topk_routing", "act_and_mul", "fused_experts", *LAYERS, "unpermute", "shuffle_rows"),
    premises=(tokens(2),),
    exact=declares_batch_invariance,
    keeps_shapes=True,
)
def duplicate_tokens(case: Case, inputs: Inputs) -> Trial:
    """The second half of the rows is a copy of the first."""
    count = count_rows(case, inputs)
    half = count // 2
    rows = np.concatenate([np.arange(count - half), np.arange(half)])
    call = take_rows(case, inputs, rows)

    def pairs(calls: Calls) -> tuple[Pair, ...]:
        whole = like_the_case(calls, 1, rows=rows)
        first, second = calls.outputs[1][:half], calls.outputs[1][count - half :]
        return (Pair(wanted=first, got=second, allowed=lambda: whole.allowed()[:half]), whole)

    return Trial(calls=(call,), pairs=pairs)


@relation(
    "the chunks of a batch computed one after the other give the whole",
    ops=(*ROW_OPS, "permute"),
    premises=(tokens(3),),
    exact=declares_batch_invariance,
)
def chunked_calls(case: Case, inputs: Inputs) -> Trial:
    """Three chunks of unequal length."""
    count = count_rows(case, inputs)
    parts = np.split(np.arange(count), [count // 5 + 1, count // 2 + 1])
    calls = tuple(take_rows(case, inputs, part) for part in parts if len(part))
    starts = np.cumsum([0, *(len(part) for part in parts)])

    def pairs(seen: Calls) -> tuple[Pair, ...]:
        return tuple(
            like_the_case(seen, i + 1, rows=slice(int(starts[i]), int(starts[i + 1]))) for i in range(len(calls))
        )

    return Trial(calls=calls, pairs=pairs)


@relation(
    "a token computed alone gives what it gives in its batch",
    ops=TOKEN_OPS,
    premises=(tokens(2),),
    exact=declares_batch_invariance,
)
def one_token_calls(case: Case, inputs: Inputs) -> Trial:
    """A few tokens, the first and the last among them, each in a call of its own."""
    count = count_rows(case, inputs)
    rows = np.unique(np.linspace(0, count - 1, ALONE).astype(np.intp))
    calls = tuple(take_rows(case, inputs, [int(row)]) for row in rows)

    def pairs(seen: Calls) -> tuple[Pair, ...]:
        return tuple(like_the_case(seen, i + 1, rows=[int(row)]) for i, row in enumerate(rows))

    return Trial(calls=calls, pairs=pairs)


@relation(
    "a crowd of one token, all at the same experts, gives its output in every row",
    ops=TOKEN_OPS,
    premises=(tokens(1),),
    exact=declares_batch_invariance,
)
def skewed_load(case: Case, inputs: Inputs) -> Trial:
    """One token many times over: rows past a full block of one expert are compared with the token alone."""
    token = _busiest(case, inputs)
    crowd, alone = take_rows(case, inputs, np.full(CROWD, token)), take_rows(case, inputs, [token])
    return Trial(
        calls=(alone, crowd),
        pairs=lambda calls: (
            like_the_case(calls, 1, rows=[token]),
            like_the_case(calls, 2, rows=np.full(CROWD, token)),
        ),
    )


def _busiest(case: Case, inputs: Inputs) -> int:
    """A token all of whose slots have an expert with a weight, where there is one."""
    if case.op not in ("fused_experts", "unpermute"):
        return 0
    ids = inputs["topk_ids" if case.op == "fused_experts" else "inv_permuted_idx"]
    size: Float64 = np.where(ids >= 0, np.abs(inputs["topk_weights"]), 0.0).min(axis=1)
    return int(np.argmax(size))


@relation(
    "more tokens behind the others change none of these",
    ops=(*ROW_OPS, "permute"),
    premises=(tokens(2),),
    exact=declares_batch_invariance,
)
def appended_tokens(case: Case, inputs: Inputs) -> Trial:
    """Copies of a few tokens follow; of a grouped GEMM, rows of the last group."""
    count = count_rows(case, inputs)
    more = np.full(5, count - 1) if case.op == "grouped_gemm" else np.arange(min(5, count))
    call = take_rows(case, inputs, np.concatenate([np.arange(count), more]))
    return Trial(calls=(call,), pairs=lambda calls: (_first_rows(calls, count),))


def _first_rows(calls: Calls, count: int) -> Pair:
    whole = like_the_case(calls, 1, rows=EVERY)
    return Pair(wanted=whole.wanted, got=whole.got[:count], allowed=whole.allowed)
