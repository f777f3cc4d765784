"""A call of a reference as data, and sums of calls."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.errors import HarnessError
from moecheck.formats import to_float64
from moecheck.mutants import all_mutants
from moecheck.mutants.call import (
    Term,
    call_of,
    decoded,
    predict,
    rounded,
    slots_of,
    value,
    with_experts,
    with_inputs,
    with_slots,
)
from moecheck.mutants.registry import mutant
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from tests.bounds import U64, gamma
from tests.mutants.small_cases import TOP4, case

ORACLE = Oracle()
PLAIN = call_of(case("fused_experts", TOP4), ORACLE)


def test_the_unchanged_call_is_the_right_output() -> None:
    values = ORACLE.values(PLAIN.case, None)
    assert np.array_equal(value(PLAIN), values.true)
    assert np.array_equal(value(decoded(PLAIN)), values.true)
    assert np.array_equal(predict(PLAIN, None, values.sigma, "bf16").sigma, values.sigma)
    stores = Numerics(gate_up="bf16")
    assert np.array_equal(rounded(PLAIN, stores, "bf16"), ORACLE.values(PLAIN.case, stores).rounded)


def test_terms_are_added_up_and_their_errors_too() -> None:
    ones = np.ones((20, 72))
    twice = (Term(call=PLAIN), Term(call=PLAIN, factor=2.0))
    whole = predict(PLAIN, None, ones, "bf16")
    found = predict(twice, None, ones, "bf16")

    rounding = gamma(8, U64)  # a product and a sum on each side; a root and squares too for sigma
    assert (np.abs(found.value - 3 * whole.value) <= rounding * np.abs(3 * whole.value)).all()
    assert (np.abs(found.sigma - np.sqrt(5) * whole.sigma) <= rounding * np.sqrt(5) * whole.sigma).all()


def test_a_term_times_zero_is_zero_whatever_it_is() -> None:
    poisoned = with_inputs(PLAIN, w2=np.full(PLAIN.inputs["w2"].shape, np.nan))
    kept = np.ones((20, 1))
    kept[3] = 0.0
    assert not np.any(value((Term(call=poisoned, factor=0.0),)))
    assert not np.any(value((Term(call=poisoned, factor=kept),))[3])
    assert np.isnan(value((Term(call=poisoned, factor=kept),))[4]).all()


def test_rows_are_taken_from_elsewhere() -> None:
    order = np.roll(np.arange(20), 1)
    assert np.array_equal(value((Term(call=PLAIN, rows=order),)), value(PLAIN)[order])


def test_changes_leave_the_given_call_alone() -> None:
    before = {name: np.array(array) for name, array in PLAIN.inputs.items()}
    with_slots(with_experts(PLAIN, activation="gelu"), weights=np.zeros((20, 4)))
    assert PLAIN.case.spec.experts.activation == "silu"
    for name, array in before.items():
        assert np.array_equal(to_float64(PLAIN.inputs[name]), to_float64(array))


def test_a_layers_slots_are_those_of_its_router() -> None:
    layer = call_of(case("moe_layer", TOP4), ORACLE)
    slots = slots_of(layer)
    assert (np.abs(slots.weights.sum(axis=1) - 1) <= gamma(slots.weights.shape[1] + 1, U64)).all()
    assert np.array_equal(value(with_slots(layer)), value(layer))
    halved = value(with_slots(layer, weights=slots.weights / 2))
    np.testing.assert_array_equal(halved, value(layer) / 2)  # a power of two changes no significand


def test_two_mutants_of_one_name_are_refused() -> None:
    all_mutants()
    with pytest.raises(HarnessError, match="Two mutants are named 'drop_r'"):
        mutant("drop_r", "the same again", "moe_layer")(lambda call: call)
