"""Mutants of everything around the maths: rows lost, exchanged or not written, maps and padding ids misread."""

from __future__ import annotations

import numpy as np

from moecheck.cases import Case
from moecheck.formats import Float64, to_float64

from .call import Call, Mutation, Slots, Term, slots_of, value, with_inputs, with_slots
from .registry import mutant

ROWS_OF_EXPERTS = ("expert_outputs", "batched_experts")
ROWS = ("fused_experts", "moe_layer", "unpermute", "act_and_mul", "grouped_gemm", *ROWS_OF_EXPERTS)
SUMS = ("fused_experts", "moe_layer", "unpermute")
EXPERTS = ("fused_experts", "moe_layer", "grouped_gemm")


def mapped(case: Case) -> bool:
    return case.num_local_experts is not None and case.num_local_experts < case.num_experts


def padded(case: Case) -> bool:
    return case.load == "padding"


@mutant("all_zeros", "the output is all zeros: nothing was written or added up", *ROWS)
def all_zeros(call: Call) -> Mutation:
    return (Term(call=call, factor=0.0),)


@mutant("all_zeros", "weights and ids are all zeros: nothing was written", "topk_routing", variant="routing")
def zero_slots(call: Call) -> Call:
    slots = slots_of(call)
    return with_slots(call, weights=np.zeros(slots.weights.shape), ids=np.zeros_like(slots.ids))


@mutant("factor", "the output is 1.05 times the right one", *ROWS, fitted=True)
def factor(call: Call) -> Mutation:
    return (Term(call=call, factor=1.05),)


@mutant("factor", "the weights are 1.05 times the right ones", "topk_routing", variant="routing", fitted=True)
def weights_factor(call: Call) -> Call:
    return with_slots(call, weights=1.05 * slots_of(call).weights)


@mutant(
    "double_reduce",
    "the output is twice the right one: added up twice over the ranks",
    *ROWS,
    sources=("vllm-project/vllm#28277", "sgl-project/sglang#23731"),
)
def double_reduce(call: Call) -> Mutation:
    return (Term(call=call, factor=2.0),)


@mutant("sign", "the output has the wrong sign", *ROWS)
def wrong_sign(call: Call) -> Mutation:
    return (Term(call=call, factor=-1.0),)


@mutant("1_token_zero", "one token's row is zero", *ROWS, fitted=True)
def one_row_zero(call: Call) -> Mutation:
    rows = value(call)
    kept = np.ones((len(rows), 1))
    kept[_largest_row(rows)] = 0.0
    return (Term(call=call, factor=kept),)


@mutant(
    "2_tokens_swapped",
    "two tokens' rows are exchanged",
    *ROWS,
    fitted=True,
    when=lambda case: case.num_tokens > 1,
    sources=("sgl-project/sglang#6858",),
)
def two_rows_swapped(call: Call) -> Mutation:
    rows = value(call)
    order = np.arange(len(rows))
    first = _largest_row(rows)
    second = int(np.argmax(np.abs(np.nan_to_num(rows) - np.nan_to_num(rows[first])).sum(axis=1)))
    order[[first, second]] = order[[second, first]]
    return (Term(call=call, rows=order),)


@mutant("rows_shifted", "each row is the one before it", *ROWS, when=lambda c: c.num_tokens > 1)
def rows_shifted(call: Call) -> Mutation:
    return (Term(call=call, rows=np.roll(np.arange(len(value(call))), 1)),)


@mutant("nan_rows", "rows are NaN: memory that nobody wrote", *ROWS, fitted=True, sources=("vllm-project/vllm#20167",))
def one_row_nan(call: Call) -> Mutation:
    rows = value(call)
    poison = np.ones((len(rows), 1))
    poison[_largest_row(rows)] = np.nan
    return (Term(call=call, factor=poison),)


@mutant(
    "expert_dropped",
    "one expert contributes nothing",
    "fused_experts",
    "moe_layer",
    fitted=True,
    sources=("HabanaAI/vllm-gaudi#1796",),
)
def expert_dropped(call: Call) -> Call:
    slots = slots_of(call)
    return with_slots(call, ids=np.where(slots.ids == _busiest(slots), -1, slots.ids))


@mutant("expert_dropped", "the rows of one expert are zero", "grouped_gemm", variant="gemm", fitted=True)
def group_dropped(call: Call) -> Mutation:
    starts = np.r_[0, call.inputs["expert_ends"]]
    busiest = int(np.argmax(np.diff(starts)))
    kept = np.ones((len(call.inputs["x"]), 1))
    kept[starts[busiest] : starts[busiest + 1]] = 0.0
    return (Term(call=call, factor=kept),)


@mutant("slot_lost", "one expert's share of one token is missing", *SUMS, fitted=True)
def slot_lost(call: Call) -> Call:
    slots = slots_of(call)
    held = np.where(slots.ids >= 0, np.abs(slots.weights), 0.0)
    token = int(np.argmax(np.sort(held, axis=1)[:, -2:].min(axis=1)))  # where others are left
    ids = slots.ids.copy()
    ids[token, int(np.argmax(held[token]))] = -1
    return with_slots(call, ids=ids)


@mutant(
    "map_minus1_wraps",
    "an expert that is not on this rank (-1 in the map) is taken for the last one here",
    "fused_experts",
    when=mapped,
    sources=("vllm-project/vllm#57946", "ROCm/aiter#3995"),
)
def map_wraps(call: Call) -> Call:
    given = call.inputs["expert_map"]
    return with_inputs(call, expert_map=np.where(given < 0, given.max(), given).astype(np.int32))


@mutant(
    "map_ignored",
    "the expert map is ignored: global ids are used as local ones",
    "fused_experts",
    "expert_outputs",
    when=mapped,
    sources=("ROCm/aiter#3995",),
)
def map_ignored(call: Call) -> Call:
    assert call.case.num_local_experts is not None
    return with_inputs(call, expert_map=np.arange(call.case.num_experts) % call.case.num_local_experts)


@mutant(
    "foreign_experts_as_0",
    "an expert that is not on this rank (-1 in the map) is taken for the first one here",
    "fused_experts",
    when=mapped,
    sources=("vllm-project/vllm#35161",),
)
def map_to_first(call: Call) -> Call:
    return with_inputs(call, expert_map=np.maximum(call.inputs["expert_map"], 0))


@mutant(
    "pad_id_wraps",
    "the padding id -1 is taken for the last expert",
    "fused_experts",
    when=lambda case: padded(case) and not mapped(case),
    sources=("vllm-project/vllm#57946",),
)
def padding_wraps(call: Call) -> Call:
    ids = slots_of(call).ids
    return with_slots(call, ids=np.where(ids < 0, call.case.num_experts - 1, ids))


@mutant(
    "pad_expert_ids_0",
    "the padding id -1 is taken for expert 0",
    "fused_experts",
    when=padded,
    sources=("vllm-project/vllm#35161",),
)
def padding_is_0(call: Call) -> Call:
    return with_slots(call, ids=np.maximum(slots_of(call).ids, 0))


@mutant("pad_row_read", "an index of -1 reads the last row", "unpermute", when=padded)
def padding_reads_last_row(call: Call) -> Call:
    rows = slots_of(call).ids
    return with_slots(call, ids=np.where(rows < 0, len(call.inputs["permuted"]) - 1, rows))


@mutant("pad_row_read", "an index of -1 reads row 0", "unpermute", variant="first", when=padded)
def padding_reads_first_row(call: Call) -> Call:
    return with_slots(call, ids=np.maximum(slots_of(call).ids, 0))


@mutant(
    "wrong_row_in_unpermute",
    "each slot reads the row after its own",
    "unpermute",
    sources=("sgl-project/sglang#6858",),
)
def next_row(call: Call) -> Call:
    rows = slots_of(call).ids
    return with_slots(call, ids=np.where(rows < 0, -1, (rows + 1) % len(call.inputs["permuted"])))


@mutant(
    "wrong_row_in_unpermute",
    "the indices are read slot by slot instead of token by token",
    "unpermute",
    variant="transposed",
    when=lambda case: case.spec.routing.top_k > 1,
)
def transposed_rows(call: Call) -> Call:
    rows = slots_of(call).ids
    return with_slots(call, ids=rows.T.reshape(rows.shape))


@mutant(
    "returns_input",
    "the output is the hidden states that went in",
    "fused_experts",
    "moe_layer",
    sources=("sgl-project/sglang#21348",),
)
def returns_input(call: Call) -> Float64:
    return to_float64(call.inputs["hidden_states"])


@mutant("residual_added", "the hidden states are added to the output", "fused_experts", "moe_layer")
def residual_added(call: Call) -> Float64:
    return value(call) + to_float64(call.inputs["hidden_states"])


@mutant(
    "map_as_mask",
    "the expert map is taken for a mask of 0 and 1: local expert 0 is absent, and -1 is present",
    "fused_experts",
    when=mapped,
    sources=("vllm-project/vllm#49758",),
)
def map_taken_for_mask(call: Call) -> Call:
    assert call.case.num_local_experts is not None
    present = call.inputs["expert_map"] != 0
    order = (np.cumsum(present) - 1) % call.case.num_local_experts
    return with_inputs(call, expert_map=np.where(present, order, -1).astype(np.int32))


@mutant(
    "pad_ids_random",
    "padding ids of -1 are whatever memory held: experts in range",
    "fused_experts",
    when=padded,
    sources=("sgl-project/sglang#24850", "sgl-project/sglang#28378"),
)
def padding_is_random(call: Call) -> Call:
    ids = slots_of(call).ids
    anything = np.arange(ids.size).reshape(ids.shape) * 7 % call.case.num_experts
    return with_slots(call, ids=np.where(ids < 0, anything, ids))


@mutant(
    "pad_row_nonzero",
    "rows of tokens without an expert hold the hidden states instead of zero",
    "fused_experts",
    when=padded,
    sources=("sgl-project/sglang#30895",),
)
def padding_rows_not_zero(call: Call) -> Float64:
    empty = np.all(slots_of(call).ids < 0, axis=1, keepdims=True)
    return np.where(empty, to_float64(call.inputs["hidden_states"]), value(call))


@mutant(
    "pad_row_contaminates",
    "what padding slots compute is added to the first token",
    "fused_experts",
    when=padded,
    sources=("vllm-project/vllm#39593",),
)
def padding_reaches_token_0(call: Call) -> Mutation:
    slots = slots_of(call)
    ghosts = with_slots(call, ids=np.where(slots.ids < 0, 0, -1))
    into = np.zeros((len(slots.ids), 1))
    into[0] = 1.0
    first = np.full(len(slots.ids), int(np.argmax((slots.ids < 0).sum(axis=1))))
    return Term(call=call), Term(call=ghosts, factor=into, rows=first)


@mutant(
    "pad_rows_poison",
    "a row without an expert is multiplied by 0 although it holds NaN, and reaches every row through a shared scale",
    "fused_experts",
    when=padded,
    sources=("vllm-project/vllm#39593", "vllm-project/vllm#20167"),
    expects=("values",),
)
def padding_is_nan(call: Call) -> Mutation:
    poison = np.where((slots_of(call).ids < 0).any(), np.nan, 1.0)
    return (Term(call=call, factor=np.asarray(poison).reshape(1, 1)),)


def _largest_row(rows: Float64) -> int:
    return int(np.argmax(np.abs(np.nan_to_num(rows)).sum(axis=1)))


def _busiest(slots: Slots) -> int:
    held = slots.ids[slots.ids >= 0]
    return int(np.argmax(np.bincount(held))) if held.size else -2
