"""A call depends on what its arrays hold, not on what they held when the kernel saw them first."""

from __future__ import annotations

import numpy as np

from moecheck.cases import Case
from moecheck.relations.premises import declares_determinism, tokens
from moecheck.relations.relation import Call, Inputs, Trial, relation
from moecheck.relations.rows import EVERY, PER_ROW, ROW_OPS, like_the_case


@relation(
    "other values in the same buffers give what these values give",
    ops=ROW_OPS,
    premises=(tokens(2),),
    exact=declares_determinism,
    keeps_shapes=True,
)
def replaced_values(case: Case, inputs: Inputs) -> Trial:
    """As where a captured graph is replayed: first each row holds what its neighbour should, then its own.

    Expert weights stay as they are: a kernel may prepare them once.
    """
    names = PER_ROW.get(case.op) or {"unpermute": ("permuted", "topk_weights"), "grouped_gemm": ("x",)}[case.op]
    others = {name: np.roll(inputs[name], 1, axis=0) for name in names if name in inputs}
    return Trial(
        calls=(
            Call(case=case, inputs={**inputs, **others}),
            Call(case=case, inputs=inputs, in_place=True),
        ),
        pairs=lambda calls: (like_the_case(calls, 2, rows=EVERY),),
    )
