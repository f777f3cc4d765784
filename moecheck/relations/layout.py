"""Where a row lies in memory changes nothing."""

from __future__ import annotations

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.relations.premises import tokens
from moecheck.relations.relation import Call, Inputs, Subject, Trial, relation
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


def _apart(array: AnyArray) -> AnyArray:
    rows, width = array.shape
    wide = np.full((rows, width + GAP), np.nan, dtype=array.dtype)
    wide[:, :width] = array
    return wide[:, :width]
