"""What a kernel may declare of its calls: the same bits on every call, and in every batch."""

from __future__ import annotations

import numpy as np

from moecheck.cases import Case
from moecheck.checks.judge import SOME_ROWS
from moecheck.formats import to_float64
from moecheck.ops import OPS
from moecheck.relations.premises import declares_batch_invariance, declares_determinism, tokens
from moecheck.relations.relation import Call, Calls, Inputs, Pair, Trial, relation
from moecheck.relations.rows import EVERY, ROW_OPS, count_rows, like_the_case, take_rows


@relation(
    "a second call on equal inputs gives the same",
    ops=tuple(op for op in OPS if op not in SOME_ROWS),
    exact=declares_determinism,
    keeps_shapes=True,
    capability="deterministic",
    bitwise=True,
)
def determinism(case: Case, inputs: Inputs) -> Trial:
    """Two equal calls. Where it is not declared, the values of structures (index maps) are judged elsewhere."""

    def pairs(calls: Calls) -> tuple[Pair, ...]:
        first, second = (np.concatenate([to_float64(array).reshape(-1) for array in raw]) for raw in calls.raw)
        bits = Pair(wanted=first[None], got=second[None], allowed=lambda: np.full((1, first.size), np.inf))
        return (bits, like_the_case(calls, 1, rows=EVERY)) if case.op in ROW_OPS else (bits,)

    return Trial(calls=(Call(case=case, inputs=inputs),), pairs=pairs)


@relation(
    "the first half of the rows computed alone gives the same",
    ops=(*ROW_OPS, "permute"),
    premises=(tokens(2),),
    exact=declares_batch_invariance,
    capability="batch_invariant",
    bitwise=True,
)
def batch_invariance(case: Case, inputs: Inputs) -> Trial:
    """The first half of the rows alone; of a grouped GEMM the even rows, so that every group loses some."""
    count = count_rows(case, inputs)
    rows = np.arange(0, count, 2) if case.op == "grouped_gemm" else np.arange(count // 2)
    call = take_rows(case, inputs, rows)
    return Trial(calls=(call,), pairs=lambda calls: (like_the_case(calls, 1, rows=rows),))
