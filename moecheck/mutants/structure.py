"""Mutants of the ops that move rows and count them: blocks, offsets, rows and scales in the wrong place."""

from __future__ import annotations

from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.oracle import call_reference, reference_modules

from .call import Call, Mutation, Outputs, with_inputs
from .plumbing import mapped, padded
from .registry import mutant, stored_structures

COUNTED = ("align_block_size", "permute", "problem_sizes", "expert_counts")
RAGGED = 32  # tokens of a chunk


def right(call: Call) -> tuple[Any, ...]:
    """The right outputs, in storage dtypes, which may be changed."""
    function = getattr(reference_modules()[call.case.op], call.case.op)
    outputs = call_reference(function, call.case, call.inputs)
    stored = stored_structures(call.case, outputs if isinstance(outputs, tuple) else (outputs,))
    return tuple(np.array(output) for output in stored)


def changed(call: Call, **arrays: AnyArray) -> Outputs:
    """The right outputs but for those given by their place: `at_1=...`."""
    outputs = list(right(call))
    for name, array in arrays.items():
        outputs[int(name.removeprefix("at_"))] = array
    return Outputs(arrays=tuple(outputs))


def several_rows(case: Case) -> bool:
    return case.num_tokens > 1


@mutant(
    "map_ignored",
    "the expert map is ignored: rows of foreign experts are counted",
    "permute",
    "problem_sizes",
    "expert_counts",
    variant="counts",
    when=mapped,
    sources=("ROCm/aiter#3995", "sgl-project/sglang#15304"),
)
def map_ignored(call: Call) -> Mutation:
    return with_inputs(call, expert_map=None)


@mutant(
    "global_ids",
    "blocks hold global expert ids where local ones are due",
    "align_block_size",
    when=mapped,
    sources=("ROCm/aiter#3995",),
)
def global_ids(call: Call) -> Mutation:
    _, experts, _ = right(call)
    owned = {int(local): e for e, local in enumerate(call.inputs["expert_map"]) if local >= 0}
    return changed(call, at_1=np.array([owned.get(int(e), -1) for e in experts], np.int32))


@mutant(
    "pad_expert_ids_0",
    "a padding id of -1 is counted as expert 0",
    *COUNTED,
    variant="counts",
    when=padded,
    sources=("vllm-project/vllm#35161",),
)
def padding_is_0(call: Call) -> Mutation:
    return with_inputs(call, topk_ids=np.maximum(call.inputs["topk_ids"], 0))


@mutant(
    "pad_id_wraps",
    "a padding id of -1 is counted as the last expert",
    *COUNTED,
    variant="counts",
    when=padded,
    sources=("vllm-project/vllm#57946", "sgl-project/sglang#28378"),
)
def padding_wraps(call: Call) -> Mutation:
    ids = call.inputs["topk_ids"]
    return with_inputs(call, topk_ids=np.where(ids < 0, np.int32(call.case.num_experts - 1), ids))


@mutant(
    "padding_of_blocks_is_a_row",
    "blocks are filled up with row 0 instead of an index beyond the last row",
    "align_block_size",
    sources=("sgl-project/sglang#24850",),
)
def blocks_filled_with_row_0(call: Call) -> Mutation:
    ids, _, _ = right(call)
    return changed(call, at_0=np.where(ids == call.inputs["topk_ids"].size, np.int32(0), ids))


@mutant(
    "extra_block",
    "an expert whose rows fill its blocks gets one block more: it is padded when it need not be",
    "align_block_size",
    when=lambda case: case.load == "block_edges",
    sources=("sgl-project/sglang#4081",),
)
def padded_needlessly(call: Call) -> Mutation:
    ids, experts, padded_to = right(call)
    block, count = call.inputs["block_size"], int(padded_to[0])
    rows = call.inputs["topk_ids"].size
    for at in range(0, count, block):
        last_of_expert = at + block >= count or experts[(at + block) // block] != experts[at // block]
        if last_of_expert and (ids[at : at + block] != rows).all():
            more = np.full(block, rows, ids.dtype)
            ids = np.insert(ids, at + block, more)
            experts = np.insert(experts, at // block + 1, experts[at // block])
            return Outputs(arrays=(ids, experts, padded_to + np.int32(block)))
    return Outputs(arrays=right(call))


@mutant(
    "row_past_block_dropped",
    "the last row of an expert that fills a block is lost: < where <= is meant",
    "align_block_size",
    when=lambda case: case.load == "block_edges",
    sources=("sgl-project/sglang#6858",),
)
def last_row_of_full_block_lost(call: Call) -> Mutation:
    ids, _, padded_to = right(call)
    block, rows = call.inputs["block_size"], call.inputs["topk_ids"].size
    full = [at for at in range(0, int(padded_to[0]), block) if (ids[at : at + block] != rows).all()]
    for at in full[:1]:
        ids[at + block - 1] = rows
    return changed(call, at_0=ids)


@mutant(
    "counts_garbage",
    "counts begin at what memory held before, not at 0",
    "align_block_size",
    "problem_sizes",
    "expert_counts",
    sources=("sgl-project/sglang#3534",),
)
def counts_not_cleared(call: Call) -> Mutation:
    if call.case.op == "expert_counts":
        (counts,) = right(call)
        counts[0] += 3
        return changed(call, at_0=counts)
    if call.case.op == "align_block_size":
        *_, padded_to = right(call)
        return changed(call, at_2=padded_to + np.int32(call.inputs["block_size"]))
    _, sizes, _ = right(call)
    sizes[0, 0] += 3
    return changed(call, at_1=sizes)


@mutant(
    "group_idx_ragged",
    "empty experts get no entry: later experts move up",
    "problem_sizes",
    variant="sizes",
    when=lambda case: case.load in ("skewed", "one_expert"),
)
def empty_experts_left_out(call: Call) -> Mutation:
    starts, first, second = right(call)
    used = first[:, 0] > 0
    order = np.concatenate([np.flatnonzero(used), np.flatnonzero(~used)])
    return changed(call, at_0=starts, at_1=first[order], at_2=second[order])


@mutant("counts_summed", "counts are those of all experts so far: a running sum", "expert_counts")
def counts_summed(call: Call) -> Mutation:
    (counts,) = right(call)
    return changed(call, at_0=np.cumsum(counts, dtype=np.int32))


@mutant("counts_padded", "counts are rounded up to whole blocks of 16 rows", "expert_counts")
def counts_padded(call: Call) -> Mutation:
    (counts,) = right(call)
    return changed(call, at_0=(-(-counts // 16) * 16).astype(np.int32))


@mutant(
    "counts_of_first_slot",
    "tokens are counted instead of their slots: the first one only",
    "expert_counts",
    when=lambda case: case.spec.routing.top_k > 1,
)
def counts_of_first_slot(call: Call) -> Mutation:
    return with_inputs(call, topk_ids=call.inputs["topk_ids"][:, :1])


@mutant(
    "counts_of_expert_lost",
    "two threads count the same expert at once, and one of the counts is lost",
    "expert_counts",
    sources=("sgl-project/sglang#3534",),
)
def count_lost(call: Call) -> Mutation:
    (counts,) = right(call)
    counts[int(np.argmax(counts))] -= 1
    return changed(call, at_0=counts)


@mutant("sizes_swapped", "rows and columns of the second GEMM are exchanged", "problem_sizes")
def sizes_swapped(call: Call) -> Mutation:
    *_, second = right(call)
    return changed(call, at_2=second[:, [1, 0, 2]])


@mutant("starts_inclusive", "offsets are the inclusive prefix sum instead of the exclusive one", "problem_sizes")
def inclusive_offsets(call: Call) -> Mutation:
    starts, *_ = right(call)
    return changed(call, at_0=np.concatenate([starts[1:], starts[-1:]]))


@mutant(
    "wrong_row_in_permute",
    "each row is that of the slot number instead of its token: slots are not divided by top_k",
    "permute",
    when=lambda case: case.spec.routing.top_k > 1 and several_rows(case),
    sources=("sgl-project/sglang#6858",),
)
def slot_taken_for_token(call: Call) -> Mutation:
    permuted, _, _, inverse = right(call)
    hidden = np.asarray(call.inputs["hidden_states"])
    pairs = np.flatnonzero(inverse.ravel() >= 0)
    permuted[inverse.ravel()[pairs]] = hidden[pairs % len(hidden)]
    return changed(call, at_0=permuted)


@mutant("scale_not_permuted", "scales stay in the order of the tokens", "permute", when=lambda case: case.hidden_scale)
def scales_not_permuted(call: Call) -> Mutation:
    _, scale, _, _ = right(call)
    given = np.asarray(call.inputs["hidden_scale"], np.float32)
    scale[:] = np.resize(given, scale.shape)
    return changed(call, at_1=scale)


@mutant(
    "chunk_tail_stale",
    "the last, shorter chunk of rows holds those of the chunk before",
    "permute",
    "shuffle_rows",
    variant="rows",
    when=lambda case: case.num_tokens * case.spec.routing.top_k > RAGGED,
    sources=("vllm-project/vllm#6382",),
)
def last_chunk_stale(call: Call) -> Mutation:
    outputs = right(call)
    rows = outputs[0]
    used = len(rows) if call.case.op == "shuffle_rows" else int(outputs[2][-1])
    tail = used % RAGGED or RAGGED
    if used > tail:
        rows[used - tail : used] = rows[used - 2 * tail if used >= 2 * tail else 0 :][:tail].copy()
    return changed(call, at_0=rows)


@mutant("map_reversed", "row map[i] of the output is row i of the input, instead of the other way round",
        "shuffle_rows", when=several_rows)  # fmt: skip
def map_reversed(call: Call) -> Mutation:
    (rows,) = right(call)
    given = np.asarray(call.inputs["x"])
    for i, row in enumerate(call.inputs["row_map"]):
        rows[int(row) % len(rows)] = given[i % len(given)]
    return changed(call, at_0=rows)


@mutant("last_row_lost", "the last row is not written", *("permute", "shuffle_rows"), when=several_rows)
def last_row_lost(call: Call) -> Mutation:
    outputs = right(call)
    used = len(outputs[0]) if call.case.op == "shuffle_rows" else int(outputs[2][-1])
    if used:
        outputs[0][used - 1] = 0
    return changed(call, at_0=outputs[0])


@mutant(
    "inverse_off_by_one",
    "the inverse map points to the row after each slot's own",
    "permute",
    when=several_rows,
    sources=("sgl-project/sglang#6858",),
)
def inverse_off_by_one(call: Call) -> Mutation:
    *_, starts, inverse = right(call)
    used = max(int(starts[-1]), 1)
    return changed(call, at_3=np.where(inverse < 0, inverse, (inverse + 1) % used).astype(np.int32))
