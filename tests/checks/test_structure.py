"""The checks of moved and counted rows: any order that the op allows passes, each planted error is placed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.checks.structure import judge_structure, same_bits
from moecheck.formats import AnyArray
from moecheck.oracle import Oracle
from tests.checks.honest import honest_outputs, verdict_of

ALIGN = Case(op="align_block_size", load="block_edges", num_tokens=96, num_experts=8)
PERMUTE = Case(op="permute", hidden_scale=True, load="padding", dtype="fp32")
SIZES = Case(op="problem_sizes", num_local_experts=4)
SHUFFLE = Case(op="shuffle_rows")
Outputs = list[AnyArray]


@cache
def oracle() -> Oracle:
    return Oracle()


def right(case: Case) -> Outputs:
    return [output.copy() for output in honest_outputs(case, oracle())]


def judged(case: Case, outputs: Outputs) -> Judgement:
    return judge_structure(case, oracle().inputs(case), tuple(outputs), oracle().outputs(case))


def _within_blocks(outputs: Outputs) -> None:
    experts, ids = outputs[1], outputs[0]
    for expert in np.unique(experts[experts >= 0]):
        rows = np.flatnonzero(np.repeat(experts == expert, 16)[: len(ids)])
        ids[rows] = ids[rows[::-1]]


def _beyond_the_end(outputs: Outputs) -> None:
    outputs[0][int(outputs[2][0]) :] = 12345
    outputs[1][int(outputs[2][0]) // 16 :] = 99


def _within_experts(outputs: Outputs) -> None:
    permuted, scale, starts, inverse = outputs
    for start, stop in pairwise(starts):
        permuted[start:stop], scale[start:stop] = permuted[start:stop][::-1].copy(), scale[start:stop][::-1].copy()
        mine = (inverse >= start) & (inverse < stop)
        inverse[mine] = start + stop - 1 - inverse[mine]


def _garbage_after_the_last_row(outputs: Outputs) -> None:
    outputs[0][outputs[2][-1] :] = 7.0
    outputs[1][outputs[2][-1] :] = 7.0


def _as_int64(outputs: Outputs) -> None:
    outputs[:] = [output.astype(np.int64) if output.dtype.kind == "i" else output for output in outputs]


def _as_uint32(outputs: Outputs) -> None:
    outputs[:] = [output.astype(np.uint32) if output.dtype.kind == "i" else output for output in outputs]


@pytest.mark.parametrize(
    ("case", "change"),
    [
        pytest.param(ALIGN, _within_blocks, id="another order inside an expert's blocks"),
        pytest.param(ALIGN, _beyond_the_end, id="anything beyond the padded count"),
        pytest.param(ALIGN, _as_int64, id="blocks as int64"),
        pytest.param(PERMUTE, _within_experts, id="another order of an expert's rows"),
        pytest.param(PERMUTE, _garbage_after_the_last_row, id="anything after the last row"),
        pytest.param(PERMUTE, _as_int64, id="rows as int64"),
        pytest.param(SIZES, _as_int64, id="sizes as int64"),
        pytest.param(ALIGN, _as_uint32, id="blocks as uint32"),
        pytest.param(PERMUTE, _as_uint32, id="rows as uint32, padding as the largest"),
        pytest.param(SIZES, _as_uint32, id="sizes as uint32"),
    ],
)
def test_what_the_op_leaves_open_passes(case: Case, change: Callable[[Outputs], None]) -> None:
    outputs = right(case)
    change(outputs)

    assert judged(case, outputs).verdict is Verdict.PASS
    assert verdict_of(judge(case, tuple(outputs), oracle(), Limits(), None)) is Verdict.PASS


def _set(output: int, place: Any, value: Any) -> Callable[[Outputs], None]:
    def change(outputs: Outputs) -> None:
        outputs[output][place] = value

    return change


def _swap(output: int, one: Any, other: Any) -> Callable[[Outputs], None]:
    def change(outputs: Outputs) -> None:
        rows = outputs[output]
        rows[one], rows[other] = rows[other].copy(), rows[one].copy()

    return change


def _cut(output: int, length: int) -> Callable[[Outputs], None]:
    def change(outputs: Outputs) -> None:
        outputs[output] = outputs[output][:length]

    return change


def _two_rows_of_one_expert(outputs: Outputs) -> None:
    """Rows of one expert exchanged, the map left as it was."""
    start = outputs[2][0]
    outputs[0][[start, start + 1]] = outputs[0][[start + 1, start]]


def _scale_left_behind(outputs: Outputs) -> None:
    outputs[1][: outputs[2][-1]] = np.roll(outputs[1][: outputs[2][-1]], 1, axis=0)


def _other_experts_rows(outputs: Outputs) -> None:
    """Rows of two experts exchanged together with the map: a consistent permutation, sorted by nothing."""
    permuted, scale, _, inverse = outputs
    last = outputs[2][-1] - 1
    for rows in (permuted, scale):
        rows[[0, last]] = rows[[last, 0]]
    first_place, last_place = inverse == 0, inverse == last
    inverse[first_place], inverse[last_place] = last, 0


def _row_twice(outputs: Outputs) -> None:
    inverse = outputs[3]
    places = np.argwhere(inverse >= 0)
    inverse[tuple(places[0])] = inverse[tuple(places[1])]


def _padding_gets_a_row(outputs: Outputs) -> None:
    inverse = outputs[3]
    inverse[tuple(np.argwhere(inverse < 0)[0])] = 0


@pytest.mark.parametrize(
    ("case", "change", "text"),
    [
        pytest.param(ALIGN, _set(2, 0, 0), "num_tokens_post_padded is [0]", id="padded count 0"),
        pytest.param(ALIGN, _set(1, 2, 7), "block 2 belongs to expert 7", id="block of another expert"),
        pytest.param(ALIGN, _set(0, 0, 191), "hold other rows than they should", id="row of another expert"),
        pytest.param(ALIGN, _set(0, 0, 192), "hold other rows than they should; (token, slot)", id="row lost"),
        pytest.param(ALIGN, _swap(0, 0, 20), "blocks 0 to 0 of expert 0", id="rows of two experts exchanged"),
        pytest.param(ALIGN, _cut(0, 100), "sorted_token_ids has 100 entries", id="too few rows"),
        pytest.param(ALIGN, _cut(1, 3), "expert_ids 3", id="too few blocks"),
        pytest.param(PERMUTE, _cut(2, 8), "expert_starts has 8 entries, expected 9", id="too few starts"),
        pytest.param(PERMUTE, _set(2, 3, 0), "expert_starts[3] is 0", id="wrong start"),
        pytest.param(PERMUTE, _set(0, (0, 5), np.nan), "row 0 does not hold the hidden state", id="NaN"),
        pytest.param(PERMUTE, _two_rows_of_one_expert, "does not hold the hidden state of token", id="rows exchanged"),
        pytest.param(PERMUTE, _scale_left_behind, "of permuted_scale does not hold the scale", id="scale left behind"),
        pytest.param(PERMUTE, _other_experts_rows, "outside the rows of its expert", id="not sorted by expert"),
        pytest.param(PERMUTE, _row_twice, "exactly once", id="one row named twice"),
        pytest.param(PERMUTE, _padding_gets_a_row, "is 0, expected -1", id="padding named a row"),
        pytest.param(SIZES, _cut(0, 4), "expert_starts has shape [4], expected [5]", id="too few starts of sizes"),
        pytest.param(SIZES, _set(0, 4, 1), "expert_starts[4] is 1", id="wrong total"),
        pytest.param(SIZES, _set(1, (2, 1), 128), "problem_sizes1[2, 1] is 128, expected 256", id="I for 2I"),
        pytest.param(SIZES, _set(2, (3, 0), 0), "problem_sizes2[3, 0] is 0", id="no rows"),
        pytest.param(SHUFFLE, _swap(0, 0, 1), "out[0, 0] is", id="rows of a shuffle exchanged"),
        pytest.param(SHUFFLE, _set(0, (5, 3), np.nan), "out[5, 3] is nan", id="NaN in a shuffle"),
    ],
)
def test_a_planted_error_is_found_and_placed(case: Case, change: Callable[[Outputs], None], text: str) -> None:
    outputs = right(case)
    change(outputs)
    result = judged(case, outputs)

    assert result.verdict is Verdict.PROVEN_WRONG
    assert text in result.message


def test_a_copy_that_loses_the_sign_of_zero_is_found() -> None:
    case = SHUFFLE
    want = (np.array([[-0.0, 1.0]], np.float32),)

    assert judge_structure(case, {}, (want[0].copy(),), want).verdict is Verdict.PASS
    result = judge_structure(case, {}, (np.array([[0.0, 1.0]], np.float32),), want)
    assert result.verdict is Verdict.PROVEN_WRONG
    assert result.message == "out[0, 0] is 0.0, expected -0.0."


def test_integers_beyond_int32_do_not_wrap() -> None:
    outputs = right(SIZES)
    _as_int64(outputs)
    outputs[1][0, 0] += 2**32

    assert judged(SIZES, outputs).verdict is Verdict.PROVEN_WRONG


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_same_bits(dtype: str) -> None:
    rows = np.arange(12, dtype=dtype).reshape(3, 4)

    assert same_bits(rows, rows.copy())
    assert same_bits(rows[:, ::2], rows[:, ::2].copy())
    assert not same_bits(rows, rows[:2])
    assert not same_bits(rows, rows[::-1])
    assert same_bits(np.array([np.nan]), np.array([np.nan]))
    assert not same_bits(np.array([0.0]), np.array([-0.0]))
    assert same_bits(np.zeros((0, 3)), np.zeros((0, 3)))
