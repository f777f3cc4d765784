"""Where a row lies in memory changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.ops import LAYERS
from moecheck.relations.premises import plain_weights, tokens
from moecheck.relations.relation import Call, Calls, Inputs, Pair, Subject, Trial, relation
from moecheck.relations.rows import DATA, EVERY, like_the_case

GAP = 24


def contiguous(subject: Subject) -> str | None:
    """The case itself has rows without gaps."""
    return None if subject.case.layout == "contiguous" else "has wide rows already"


@relation(
    "rows that lie further apart give the same",
    ops=tuple(DATA),
    premises=(tokens(2), contiguous),
    keeps_shapes=True,
)
def wide_rows(case: Case, inputs: Inputs) -> Trial:
    """The data's rows with NaN between them, another gap than the strided cases have."""
    name = DATA[case.op]
    call = Call(case=case, inputs={**inputs, name: _apart(inputs[name])})
    return Trial(calls=(call,), pairs=lambda calls: (like_the_case(calls, 1, rows=EVERY),))


@relation(
    "rows of weights that lie further apart give the same",
    ops=("fused_experts", *LAYERS, "grouped_gemm"),
    premises=(tokens(1), plain_weights),
    keeps_shapes=True,
    optional=True,
    capability="strided_weights",
    bitwise=True,
)
def wide_weights(case: Case, inputs: Inputs) -> Trial:
    """Matrices with NaN between their rows, as engines that pad weights for speed slice them. Only reported.

    A kernel may take weights as it prepared them itself.
    """
    names = [name for name in ("w", "w13", "w2", "shared_w13", "shared_w2") if name in inputs]
    call = Call(case=case, inputs={**inputs, **{name: _apart(inputs[name]) for name in names}})

    def pairs(calls: Calls) -> tuple[Pair, ...]:
        pair = like_the_case(calls, 1, rows=EVERY)
        return (replace(pair, allowed=lambda: np.full(pair.got.shape, np.inf)),)

    return Trial(calls=(call,), pairs=pairs)


def _apart(array: AnyArray) -> AnyArray:
    *rows, width = array.shape
    wide = np.full((*rows, width + GAP), np.nan, dtype=array.dtype)
    wide[..., :width] = array
    return wide[..., :width]
