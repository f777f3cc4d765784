"""Rows of a case that are independent of each other: how to take some of them, and how to find them in an output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.checks.judge import SOME_ROWS
from moecheck.formats import Float64, to_float64
from moecheck.relations.relation import Call, Calls, Inputs, Outputs, Pair

EVERY = slice(None)
Rows = npt.NDArray[np.intp]
# op -> its inputs with a row for each row of the output
PER_ROW = {
    "topk_routing": ("router_logits", "token_ids"),
    "act_and_mul": ("x",),
    "fused_experts": ("hidden_states", "topk_ids", "topk_weights"),
    "moe_layer": ("hidden_states", "router_logits", "token_ids"),
    "expert_parallel_moe": ("hidden_states", "router_logits"),
    "permute": ("hidden_states", "topk_ids", "hidden_scale"),
    "shuffle_rows": ("row_map",),
}
ROW_OPS = (*PER_ROW, "unpermute", "grouped_gemm")
# op -> the input whose rows are the data of the output's rows
DATA = {
    "topk_routing": "router_logits",
    "act_and_mul": "x",
    "fused_experts": "hidden_states",
    "moe_layer": "hidden_states",
    "expert_parallel_moe": "hidden_states",
    "grouped_gemm": "x",
}


def count_rows(case: Case, inputs: Inputs) -> int:
    """Number of independent rows of the op: tokens, or rows of a GEMM, of an activation or of a copy."""
    names = {"unpermute": "topk_weights", "grouped_gemm": "x"}
    return len(inputs[names.get(case.op) or PER_ROW[case.op][0]])


def take_rows(case: Case, inputs: Inputs, rows: Sequence[int] | Rows) -> Call:
    """The call on the given rows only, in that order, possibly repeated.

    A grouped GEMM keeps its rows sorted by group: `rows` must not descend from one group to an earlier one.
    """
    wanted = np.asarray(rows, dtype=np.intp)
    if case.op == "unpermute":
        return _take_tokens_of_unpermute(case, inputs, wanted)
    if case.op == "grouped_gemm":
        group = np.searchsorted(inputs["expert_ends"], wanted, side="right")
        ends = np.cumsum(np.bincount(group, minlength=case.num_experts)).astype(np.int32)
        return Call(case=case, inputs={**inputs, "x": inputs["x"][wanted], "expert_ends": ends})
    taken = {name: inputs[name][wanted] for name in PER_ROW[case.op] if name in inputs}
    changed = case if case.op == "shuffle_rows" else replace(case, num_tokens=len(wanted))
    if case.uneven_ranks and len(wanted) != case.num_tokens:  # the ranks' shares are of other tokens
        left = {name: value for name, value in inputs.items() if name != "rank_tokens"}
        return Call(case=replace(changed, uneven_ranks=False), inputs={**left, **taken})
    return Call(case=changed, inputs={**inputs, **taken})


def _take_tokens_of_unpermute(case: Case, inputs: Inputs, wanted: Rows) -> Call:
    """Each wanted (token, slot) gets a row of its own, in order; what -1 slots leave over is not read."""
    source = inputs["inv_permuted_idx"][wanted]
    place = np.arange(source.size, dtype=np.int32).reshape(source.shape)
    changed = {
        "permuted": inputs["permuted"][np.maximum(source, 0).reshape(-1)],
        "topk_weights": inputs["topk_weights"][wanted],
        "inv_permuted_idx": np.where(source < 0, np.int32(-1), place),
    }
    return Call(case=replace(case, num_tokens=len(wanted)), inputs={**inputs, **changed})


def rows_of(case: Case, outputs: Outputs) -> Float64:
    """An output as [rows, columns] float64.

    Routing becomes a dense matrix of weights [T, E + shared slots], so that the order of the slots does not count; an
    id that is none makes its row NaN. A permutation becomes the copies of each token, [T, top_k * H], 0 where a slot
    has none. The outputs of other structures become one row.
    """
    if case.op == "topk_routing":
        return _dense_weights(case, to_float64(outputs[0]), outputs[1])
    if case.op == "permute":
        place = outputs[3].astype(np.int64)
        last = len(outputs[0]) - 1
        copies = to_float64(outputs[0])[np.clip(place, 0, last)] if last >= 0 else np.zeros((*place.shape, 0))
        return np.where(place[..., None] >= 0, copies, 0.0).reshape(len(place), -1)
    if case.op in SOME_ROWS:
        return to_float64(outputs[0]).reshape(-1, outputs[0].shape[-1])
    if len(outputs) > 1 or outputs[0].ndim == 1:
        return np.concatenate([to_float64(output).reshape(-1) for output in outputs])[None]
    return to_float64(outputs[0])


def _dense_weights(case: Case, weights: Float64, ids: npt.NDArray[np.integer]) -> Float64:
    width = case.num_experts + case.spec.routing.num_fused_shared_experts
    dense = np.zeros((len(weights), width))
    inside = (ids >= 0) & (ids < width)
    token, slot = np.nonzero(inside)
    np.add.at(dense, (token, ids[token, slot].astype(np.intp)), weights[token, slot])
    dense[~inside.all(axis=1)] = np.nan
    return dense


def like_the_case(calls: Calls, call: int, *, rows: Sequence[int] | Rows | slice) -> Pair:
    """The pair that says: the rows of a call are the given rows of the case's own, and round as these do."""
    index = rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.intp)
    return Pair(
        wanted=calls.outputs[0][index],
        got=calls.outputs[call],
        allowed=lambda: np.sqrt(2.0) * calls.allowed(0)[index],
    )


def same(
    calls: Calls, first: int, second: int, *, rows: Sequence[int] | Rows | slice, of: Sequence[int] | Rows | slice
) -> Pair:
    """The pair that says: rows `of` call `second` are rows `rows` of call `first`."""
    i = rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.intp)
    j = of if isinstance(of, slice) else np.asarray(of, dtype=np.intp)
    return Pair(
        wanted=calls.outputs[first][i],
        got=calls.outputs[second][j],
        allowed=lambda: np.hypot(calls.allowed(first)[i], calls.allowed(second)[j]),
    )
