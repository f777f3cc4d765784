"""Mutants of the GEMMs: terms of the sum left out, columns not written, another expert's matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.formats import to_float64

from .call import Call, Mutation, Term, slots_of, value, with_inputs
from .plumbing import ROWS_OF_EXPERTS
from .registry import mutant

TILES = (16, 32, 64, 128)
FIRST = {"fused_experts": ("hidden_states", "w13"), "moe_layer": ("hidden_states", "w13"), "grouped_gemm": ("x", "w")}


def _longer_than(tile: int, size: Callable[[Case], int]) -> Callable[[Case], bool]:
    return lambda case: size(case) > tile


def _drop_first(tile: int) -> None:
    @mutant(
        "drop_last_k_tile",
        f"the last {tile} terms of the first GEMM's sums (over the hidden size) are missing",
        *FIRST,
        variant=f"last {tile} of H",
        when=_longer_than(tile, lambda case: case.hidden_size),
        sources=("sgl-project/sglang#2111",),
    )
    def drop(call: Call) -> Call:
        _, name = FIRST[call.case.op]
        w = call.inputs[name].copy()
        w[..., -tile:] = 0
        return with_inputs(call, **{name: w})


def _drop_second(tile: int) -> None:
    @mutant(
        "drop_last_k_tile",
        f"the last {tile} terms of the second GEMM's sums (over the intermediate size) are missing",
        "fused_experts",
        "moe_layer",
        variant=f"last {tile} of I",
        when=_longer_than(tile, lambda case: case.intermediate_size),
        sources=("sgl-project/sglang#2111",),
    )
    def drop(call: Call) -> Call:
        w2 = call.inputs["w2"].copy()
        w2[..., -tile:] = 0
        return with_inputs(call, w2=w2)


def _drop_ragged(tile: int) -> None:
    @mutant(
        "drop_last_k_tile",
        f"the hidden size's remainder beyond a multiple of {tile} is missing from the first GEMM's sums",
        *FIRST,
        variant=f"H beyond a multiple of {tile}",
        when=lambda case: case.hidden_size > tile and case.hidden_size % tile not in (0, *TILES),
    )
    def drop_of_hidden(call: Call) -> Call:
        _, name = FIRST[call.case.op]
        w = call.inputs[name].copy()
        w[..., call.case.hidden_size // tile * tile :] = 0
        return with_inputs(call, **{name: w})

    @mutant(
        "drop_last_k_tile",
        f"the intermediate size's remainder beyond a multiple of {tile} is missing from the second GEMM's sums",
        "fused_experts",
        "moe_layer",
        variant=f"I beyond a multiple of {tile}",
        when=lambda case: case.intermediate_size > tile and case.intermediate_size % tile not in (0, *TILES),
    )
    def drop_of_intermediate(call: Call) -> Call:
        w2 = call.inputs["w2"].copy()
        w2[..., call.case.intermediate_size // tile * tile :] = 0
        return with_inputs(call, w2=w2)


for _tile in TILES:
    _drop_first(_tile)
    _drop_second(_tile)
    _drop_ragged(_tile)


@mutant(
    "last_col_stale",
    "the last columns are not written",
    "fused_experts",
    "moe_layer",
    "grouped_gemm",
    "unpermute",
    "act_and_mul",
    *ROWS_OF_EXPERTS,
    fitted=True,
    sources=("flashinfer-ai/flashinfer#4569",),
)
def last_columns_zero(call: Call) -> Mutation:
    """As a kernel that stores whole tiles only and was given zeroed memory: the last 8 columns."""
    columns = value(call).shape[1]
    written = np.arange(columns) < columns - min(8, columns)
    return (Term(call=call, factor=written.astype(np.float64)[None]),)


@mutant(
    "group_idx_ragged",
    "empty experts are not counted: rows use the matrix of an earlier expert",
    "grouped_gemm",
    "fused_experts",
    when=lambda case: case.num_local_experts is None,
)
def empty_experts_not_counted(call: Call) -> Call:
    names = ("w", "bias") if call.case.op == "grouped_gemm" else ("w13", "w2", "w13_bias", "w2_bias")
    used = np.flatnonzero(_rows_per_expert(call))
    order = np.arange(call.case.num_experts)
    order[used] = np.arange(len(used))
    return with_inputs(call, **{name: call.inputs[name][order] for name in names if name in call.inputs})


@mutant(
    "ragged_k_garbage",
    "the hidden size is padded to a multiple of 128 with what lies in memory behind each row",
    *FIRST,
    when=lambda case: case.hidden_size % 128 != 0,
    sources=("sgl-project/sglang#2111",),
)
def garbage_behind_rows(call: Call) -> Call:
    """Behind a row of the matrix lies the next one: its first terms are multiplied with the row's own last inputs."""
    name = FIRST[call.case.op][1]
    w = to_float64(call.inputs[name])
    tail = min(-call.case.hidden_size % 128, call.case.hidden_size)
    extra = np.zeros(w.shape)
    extra[..., -tail:] = np.roll(w, -1, axis=1)[..., :tail]
    return with_inputs(call, **{name: w + extra})


@mutant(
    "w2_of_next_expert",
    "the second GEMM uses the next expert's matrix",
    "fused_experts",
    "moe_layer",
    *ROWS_OF_EXPERTS,
    when=lambda case: case.num_experts > 1,
)
def w2_of_next_expert(call: Call) -> Call:
    return with_inputs(call, w2=np.roll(call.inputs["w2"], -1, axis=0))


@mutant(
    "ids_off_by_one",
    "every row uses the next expert's matrices",
    "fused_experts",
    "grouped_gemm",
    "moe_layer",
    *ROWS_OF_EXPERTS,
)
def next_expert(call: Call) -> Call:
    names = ("w", "bias") if call.case.op == "grouped_gemm" else ("w13", "w2", "w13_bias", "w2_bias")
    return with_inputs(call, **{n: np.roll(call.inputs[n], -1, axis=0) for n in names if n in call.inputs})


def _rows_per_expert(call: Call) -> npt.NDArray[np.intp]:
    if call.case.op == "grouped_gemm":
        return np.asarray(np.diff(call.inputs["expert_ends"], prepend=0), dtype=np.intp)
    ids = slots_of(call).ids
    return np.bincount(ids[ids >= 0].reshape(-1), minlength=call.case.num_experts)
