"""The bound of every rounding at its worst: honest kernels lie within it, wrong ones beyond, and it follows by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.formats import to_float64
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.references import _hard_bound
from moecheck.spec import ExpertSpec
from tests.bounds import U64
from tests.bounds import gamma as rounding_of
from tests.numpy_experts import experts

STORED = Numerics(gate_up="input", act="input", act_times_up="input", per_expert="input", weighted="input")
ORACLE = Oracle()


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("stratum", ["random", "positive", "cancelling", "outlier", "zero_rows"])
def test_honest_experts_lie_within(dtype: str, stratum: str) -> None:
    case = Case(op="fused_experts", dtype=dtype, stratum=stratum, num_tokens=24)
    bound = _of(case)
    error = np.abs(to_float64(experts(case, ORACLE.inputs(case), STORED)) - ORACLE.values(case, STORED).true)

    assert (error <= bound).all()
    assert np.median(bound) > 4.0 * np.median(ORACLE.values(case, STORED).sigma)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_zeros_and_other_tokens_rows_lie_beyond(dtype: str) -> None:
    case = Case(op="fused_experts", dtype=dtype)
    bound, true = _of(case), ORACLE.values(case, STORED).true

    assert (np.abs(true) > bound).mean() > (0.2 if dtype == "bf16" else 0.9)
    assert (np.abs(np.roll(true, 1, axis=0) - true) > bound).mean() > (0.3 if dtype == "bf16" else 0.9)


def test_one_product_and_one_store_by_hand() -> None:
    x, w = np.array([[3.0]], np.float32), np.array([[[5.0]]], np.float32)
    bound = _hard_bound.grouped_gemm(x=x, w=w, expert_ends=np.array([1]), numerics=Numerics(out="bf16"), dtype="fp32")
    gamma = 2 * 2.0**-23 / (1 - 2 * 2.0**-23)

    by_hand = 15 * gamma + 2.0**-8 * 15 * (1 + gamma)
    flushed = 4 * 2.0**-126  # a product, its store, and what the store makes of that
    assert by_hand <= bound[0, 0] <= by_hand * (1 + rounding_of(8, U64)) + flushed


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu2", "situ"])
def test_a_gate_that_is_off_by_its_bound_moves_the_activation_no_further(activation: str) -> None:
    spec = ExpertSpec(activation=activation, gated=False)  # type: ignore[arg-type]  # one of the literals
    g = np.linspace(-8.0, 8.0, 401)[None, :]
    off = np.full(g.shape, 0.05)
    moved = _hard_bound._activated(_hard_bound.Bounded(g, off), spec, Numerics())
    for sign in (-1.0, 1.0):
        there = _hard_bound._activated(_hard_bound._exact(g + sign * off), spec, Numerics())
        assert (np.abs(there.value - moved.value) <= moved.error).all()


def test_unpermute_and_activation_of_honest_kernels() -> None:
    case = Case(op="unpermute", dtype="bf16")
    values = ORACLE.values(case, None)
    stored = to_float64(values.true.astype(np.float32))
    assert (np.abs(stored - values.true) <= _of(case)).all()
    case = Case(op="act_and_mul", dtype="fp16")
    values = ORACLE.values(case, None)
    assert (np.abs(values.true.astype(np.float16).astype(np.float64) - values.true) <= _of(case)).all()


def _of(case: Case) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    bound = ORACLE.hard_bound(case, STORED)
    assert bound is not None
    return bound
