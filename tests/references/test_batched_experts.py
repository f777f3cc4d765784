"""batched_experts: each expert's rows are what fused_experts adds up, and garbage is not read."""

from __future__ import annotations

from typing import Any

import numpy as np

from moecheck.formats import Float64
from moecheck.numerics import Numerics
from moecheck.references.batched_experts import batched_experts, estimate
from moecheck.references.fused_experts import estimate as of_sums
from moecheck.references.fused_experts import fused_experts
from moecheck.spec import ExpertSpec

COUNTS = np.array([3, 0, 5, 1], np.int32)
RNG = np.random.default_rng(11)
WEIGHTS: dict[str, Any] = {"w13": RNG.normal(size=(4, 12, 8)), "w2": RNG.normal(size=(4, 8, 6))}


def rows() -> Float64:
    """[4, 5, 8] with NaN from each expert's count on."""
    x = RNG.normal(size=(4, 5, 8))
    for expert, count in enumerate(COUNTS):
        x[expert, count:] = np.nan
    return x


def test_a_row_by_hand() -> None:
    """One unit of relu^2 without a gate: expert e maps x to ((e + 1) x0)^2 (1, 2)."""
    x = np.array([[[3.0, 9.0], [np.nan, np.nan]], [[-1.0, 9.0], [2.0, 9.0]]])
    w13 = np.array([[[1.0, 0.0]], [[2.0, 0.0]]])
    w2 = np.array([[[1.0], [2.0]]] * 2)
    y = batched_experts(
        hidden_states=x,
        w13=w13,
        w2=w2,
        expert_counts=np.array([1, 2]),
        spec=ExpertSpec(activation="relu2", gated=False),
    )
    np.testing.assert_array_equal(y, [[[9.0, 18.0], [np.nan, np.nan]], [[0.0, 0.0], [16.0, 32.0]]])


def test_rows_are_those_of_fused_experts_with_one_slot_of_weight_one() -> None:
    x, spec = rows(), ExpertSpec()
    y = batched_experts(hidden_states=x, expert_counts=COUNTS, spec=spec, **WEIGHTS)
    estimated = estimate(hidden_states=x, expert_counts=COUNTS, spec=spec, numerics=Numerics(), dtype="fp32", **WEIGHTS)
    for expert, count in enumerate(COUNTS):
        arrays: dict[str, Any] = {
            "hidden_states": x[expert, :count],
            "topk_ids": np.full((count, 1), expert),
            "topk_weights": np.ones((count, 1), np.float32),
        }
        np.testing.assert_array_equal(y[expert, :count], fused_experts(**arrays, spec=spec, **WEIGHTS))
        assert np.isnan(y[expert, count:]).all()
        alone = of_sums(**arrays, spec=spec, numerics=Numerics(), dtype="fp32", **WEIGHTS)
        mine = slice(expert * 5, expert * 5 + count)
        np.testing.assert_array_equal(estimated.value[mine], alone.value)
        assert (estimated.sigma[mine] > 0).all()
        assert (estimated.sigma[mine] <= alone.sigma).all()  # the sum's own rounding comes on top there


def test_garbage_is_not_read() -> None:
    x, spec = rows(), ExpertSpec()
    y = batched_experts(hidden_states=x, expert_counts=COUNTS, spec=spec, **WEIGHTS)
    other = np.where(np.isnan(x), 1e30, x)
    np.testing.assert_array_equal(y, batched_experts(hidden_states=other, expert_counts=COUNTS, spec=spec, **WEIGHTS))
