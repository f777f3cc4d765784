"""Lazily drawn experts are the same numbers as the case's inputs, in any order of reading."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.drawn_experts import drawn_experts
from moecheck.errors import CaseError
from moecheck.formats import to_float64


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 0, 2), (2, 3)], ids=["in turn", "jumping", "from the middle"])
def test_lazy_experts_equal_the_inputs(dtype: str, order: tuple[int, ...]) -> None:
    """Whatever was drawn ahead, expert e is expert e."""
    case = Case(op="fused_experts", num_experts=4, hidden_size=24, intermediate_size=10, dtype=dtype)
    inputs = case.inputs()
    for stack, name in zip(drawn_experts(case), ("w13", "w2"), strict=True):
        assert stack.shape == inputs[name].shape
        for expert in order:
            np.testing.assert_array_equal(stack[expert], to_float64(inputs[name][expert]))


def test_other_strata_are_refused() -> None:
    """Their weights are not plain look-ups."""
    with pytest.raises(CaseError, match="use `random`"):
        drawn_experts(Case(op="fused_experts", stratum="cancelling"))
