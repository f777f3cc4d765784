"""Mutants of experts whose outputs are not added up: slots and batched rows that are not their own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.formats import Float64

from .call import Call, Ids, Mutation, Term, value
from .plumbing import padded
from .registry import mutant

SLOTS, BATCHED = "expert_outputs", "batched_experts"
BLOCK = 16  # rows of an expert that a kernel computes at a time


def several_slots(case: Case) -> bool:
    return case.spec.routing.top_k > 1


def rows_of_slots(call: Call, order: Ids) -> Mutation:
    """The output with the slots of each token in another order. order: [T, k] int, of slots."""
    tokens, slots = order.shape
    return (Term(call=call, rows=(np.arange(tokens)[:, None] * slots + order).reshape(-1)),)


def rows_of_experts(call: Call) -> tuple[Ids, Ids]:
    """The expert of each row of a batch, [E C], and the row's place among those of its expert, [E C]."""
    experts, room = call.inputs["hidden_states"].shape[:2]
    return np.repeat(np.arange(experts), room), np.tile(np.arange(room), experts)


def only_rows(call: Call, kept: npt.NDArray[np.bool_]) -> Mutation:
    """The output without some rows, which are zero. kept: [rows] bool."""
    return (Term(call=call, factor=kept.astype(np.float64)[:, None]),)


@mutant("slots_reversed", "a token's slots stand in the reverse order", SLOTS, when=several_slots)
def slots_reversed(call: Call) -> Mutation:
    tokens, slots = call.inputs["topk_ids"].shape
    return rows_of_slots(call, np.tile(np.arange(slots)[::-1], (tokens, 1)))


@mutant("slots_by_expert", "a token's slots stand in the order of their experts", SLOTS, when=several_slots)
def slots_by_expert(call: Call) -> Mutation:
    return rows_of_slots(call, np.argsort(call.inputs["topk_ids"], axis=1, kind="stable"))


@mutant("slots_as_first", "every slot of a token holds the output of its first", SLOTS, when=several_slots)
def slots_as_first(call: Call) -> Mutation:
    return rows_of_slots(call, np.zeros_like(call.inputs["topk_ids"]))


@mutant(
    "slots_summed",
    "every slot holds the sum of the token's slots: they are added up although they must not be",
    SLOTS,
    when=several_slots,
    sources=("sgl-project/sglang#23545",),
)
def slots_summed(call: Call) -> Float64:
    tokens, slots = call.inputs["topk_ids"].shape
    each = np.nan_to_num(value(call)).reshape(tokens, slots, -1)
    return np.repeat(each.sum(axis=1), slots, axis=0)


@mutant(
    "slots_weighted",
    "slots are multiplied by a routing weight of 1 / top_k although they must not be weighted",
    SLOTS,
    when=several_slots,
    sources=("sgl-project/sglang#23545",),
)
def slots_weighted(call: Call) -> Mutation:
    return (Term(call=call, factor=1.0 / call.case.spec.routing.top_k),)


@mutant(
    "absent_slots_left_out",
    "slots without an expert take no room: later slots move up",
    SLOTS,
    when=padded,
    sources=("sgl-project/sglang#6858",),
)
def absent_slots_left_out(call: Call) -> Mutation:
    absent = call.inputs["topk_ids"].reshape(-1) < 0
    return (Term(call=call, rows=np.argsort(absent, kind="stable")),)


@mutant("last_row_of_expert_lost", "the last row of each expert is not written: < where <= is meant", BATCHED)
def last_row_of_expert_lost(call: Call) -> Mutation:
    expert, place = rows_of_experts(call)
    return only_rows(call, place < call.inputs["expert_counts"][expert] - 1)


@mutant(
    "counts_of_next_expert",
    "each expert computes as many rows as the next one has",
    BATCHED,
    when=lambda case: case.num_experts > 1,
)
def counts_of_next_expert(call: Call) -> Mutation:
    expert, place = rows_of_experts(call)
    return only_rows(call, place < np.roll(call.inputs["expert_counts"], -1)[expert])


@mutant(
    "one_block_of_expert",
    f"only the first block of {BLOCK} rows of each expert is computed",
    BATCHED,
    when=lambda case: case.num_tokens * case.spec.routing.top_k > BLOCK * case.num_experts,
)
def one_block_of_expert(call: Call) -> Mutation:
    _, place = rows_of_experts(call)
    return only_rows(call, place < BLOCK)


@mutant(
    "batched_as_packed",
    "rows of the batch are looked for where they would lie without room between experts",
    BATCHED,
    when=lambda case: case.num_experts > 1,
    sources=("sgl-project/sglang#6858",),
)
def batched_as_packed(call: Call) -> Mutation:
    expert, place = rows_of_experts(call)
    counts = call.inputs["expert_counts"]
    return (Term(call=call, rows=(np.cumsum(counts) - counts)[expert] + place),)
