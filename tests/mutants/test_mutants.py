"""Every mutant is wrong on some case of each of its ops, and the diagnosis names it there."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.diagnosis import diagnose
from moecheck.formats import FORMATS, to_float64
from moecheck.mutants import Mutant, all_mutants, mutants_for, mutated_outputs, mutated_value
from moecheck.mutants.call import flat
from moecheck.mutants.registry import STRUCTURES, mutated_prediction, stored_structures
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.quantizer import Quantizer
from tests.bounds import U32
from tests.mutants.small_cases import CASES, case

STORES = Numerics(gate_up="input", act_times_up="input", per_expert="input")
# Cheapest first: a mutant is named on the first of its ops, and must be wrong on all of them.
OPS = ("topk_routing", "act_and_mul", "unpermute", "grouped_gemm", "fused_experts", "moe_layer")
SLIGHT = {m.id for m in all_mutants() if m.slight}  # named in tests/test_diagnosis_slight.py
WRONG = [m for m in all_mutants() if not m.equivalent]
OTHERS = (
    "expert_outputs",
    "batched_experts",
    "expert_parallel_moe",
    *sorted(STRUCTURES),
)  # whose wrong outputs diagnosis does not name
PAIRS = [pytest.param(op, m, id=f"{op}: {m.id}") for m in WRONG for op in (*OPS, *OTHERS) if op in m.ops]
CONTRACTS = (
    Numerics(a2_quant=Quantizer(group=32)),
    Numerics(a2_quant=Quantizer(group=128, scale="power_of_two")),
    Numerics(a1_quant=Quantizer(), a2_quant=Quantizer()),
    Numerics(a1_quant=Quantizer(static=True), a2_quant=Quantizer(static=True)),
)
# What diagnosis does not name: a difference of a few roundings, rows whose choice is undefined or a tie, and what
# another check tells in its own words.
TOLD_OTHERWISE = {
    "eps_1e-6",
    "highest_id_ties",
    "nan_duplicate_ids",
    "id_out_of_range",
    "padded_scores_topk",
    "ids_float",
    "zero_expert_minus1",
    "pad_rows_poison",
}
NAMED = [m for m in WRONG if m.id not in SLIGHT | TOLD_OTHERWISE and m.under is None and m.ops & set(OPS)]
LEAST_CHANGED = 0.05
NOT_COMPUTED = {"truncating_store", "all_zeros", "nan_rows", "last_col_stale", "1_token_zero", "returns_input",
                "chunk_tail_unwritten", "stale_graph_input"}  # fmt: skip
# What a mutant is called where it makes the same output as another one on every case of the op.
ROUNDINGS = 64  # of a routing weight in fp32, more than any router makes
SAME = {"1_token_zero": {"slot_lost"}}


@cache
def oracle(op: str) -> Oracle:
    return Oracle()


def wrong_on(one: Mutant, which: Case) -> bool:
    """Whether its output differs from the right one by far more than rounding."""
    known = oracle(which.op)
    contract = contract_for(one)
    outputs = mutated_outputs(one, which, known, contract)
    if which.op in STRUCTURES:
        right = stored_structures(which, known.outputs(which))
        return any(a.shape != b.shape or a.tobytes() != b.tobytes() for a, b in zip(outputs, right, strict=True))
    if which.op == "topk_routing":
        right = known.outputs(which)
        rounding = ROUNDINGS * U32 * np.abs(right[0])
        if outputs[1].dtype.kind == "f":
            return True
        return not (np.array_equal(outputs[1], right[1]) and (np.abs(outputs[0] - right[0]) <= rounding).all())
    values, out = known.values(which, contract), flat(to_float64(outputs[0]))
    if one.under is not None:
        return bool((out != values.rounded).mean() > LEAST_CHANGED)
    if one.slight:  # beside an output that is rounded once
        return bool((out != values.rounded).mean() > LEAST_CHANGED)
    asked = ~np.isnan(values.true)
    return not bool((np.abs(out - values.true) <= 12 * values.sigma)[asked].all())


def contract_for(one: Mutant) -> Numerics | None:
    """The contract of a kernel that can have this bug."""
    return next((numerics for numerics in CONTRACTS if one.under is not None and one.under(numerics)), None)


def case_for(one: Mutant, op: str) -> Case | None:
    return next((which for which in CASES[op] if one.applies(which, contract_for(one)) and wrong_on(one, which)), None)


@pytest.mark.parametrize(("op", "one"), PAIRS)
def test_it_is_wrong_on_a_case(op: str, one: Mutant) -> None:
    assert case_for(one, op) is not None, "no case on which it differs from the right output"


@pytest.mark.parametrize("one", NAMED, ids=lambda m: m.id)
def test_it_is_named_where_it_is_wrong(one: Mutant) -> None:
    op = next(op for op in OPS if op in one.ops)
    which = case_for(one, op)
    assert which is not None

    diagnosis = diagnose(which, mutated_outputs(one, which, oracle(op), STORES), oracle(op), None)

    assert diagnosis is not None
    assert one.name in {diagnosis.hypothesis, *diagnosis.also, *SAME.get(diagnosis.hypothesis or "", ())}, (
        diagnosis.words()
    )


@pytest.mark.parametrize("one", all_mutants(), ids=lambda m: m.id)
def test_it_says_what_is_wrong_and_where_it_happened(one: Mutant) -> None:
    assert one.words
    assert one.words[-1] != "."
    assert one.ops <= CASES.keys()
    assert one.kind in ("routing", "shared", "activation", "GEMM", "quantisation", "plumbing")
    assert one.expected
    for source in one.sources:
        assert re.fullmatch(r"[\w-]+/[\w-]+#\d+", source), source


def test_ids_are_unique_and_the_catalogue_has_every_class() -> None:
    ids = [m.id for m in all_mutants()]
    assert len(set(ids)) == len(ids) >= 200
    assert len({m.kind for m in all_mutants()}) == 6


def test_none_applies_without_tokens() -> None:
    assert mutants_for(case("moe_layer", num_tokens=0)) == ()


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp16"])
def test_outputs_have_the_dtypes_of_the_op(dtype: str) -> None:
    which = case("fused_experts", dtype=dtype)
    for one in mutants_for(which):
        (out,) = mutated_outputs(one, which, oracle("fused_experts"), STORES)
        assert out.dtype == FORMATS[dtype].storage
        assert out.shape == (20, 72)
    zeros = next(m for m in all_mutants() if m.id == "all_zeros/routing")
    weights, ids = mutated_outputs(zeros, case("topk_routing"), Oracle(), None)
    assert weights.dtype == np.float32
    assert ids.dtype == np.int32


def test_a_mutants_output_is_rounded_as_the_contract_says() -> None:
    """Under the kernel's stores it is as far from its own unrounded value as a right kernel is from the right one."""
    which, known = case("fused_experts", dtype="bf16"), oracle("fused_experts")
    for one in mutants_for(which):
        if one.name in NOT_COMPUTED:
            continue  # nothing is computed there that could be rounded
        value, sigma = mutated_prediction(one, which, known, STORES)
        assert np.array_equal(value, mutated_value(one, which, known))
        (out,) = mutated_outputs(one, which, known, STORES)
        z = (to_float64(out) - value)[sigma > 0] / sigma[sigma > 0]
        assert np.sqrt(np.mean(z**2)) <= 1.5, one.id
        assert np.abs(z).max() > 0, one.id
