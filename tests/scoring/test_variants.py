"""Legal variants are correct kernels, and mutants planted in them are wrong ones."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.formats import to_float64
from moecheck.mutants import all_mutants
from moecheck.mutants.call import call_of
from moecheck.mutants.quantiser_maths import with_requantised
from moecheck.oracle import Oracle
from moecheck.quantizer import Quantizer
from moecheck.scoring.corpus import JUDGED_OPS, corpus, in_turn, legal_trial, planted
from moecheck.scoring.outputs import honest_outputs, outputs_with
from moecheck.scoring.variant_kernel import output_of, takes
from moecheck.scoring.variant_maths import requantised
from moecheck.scoring.variants import CLASSES, REQUANTISED, STORES, Variant, chunks_of, variant_of
from moecheck.scoring.verdicts import judged
from moecheck.spec import MoESpec, RoutingSpec
from tests.bounds import U32, gamma

SMALL = Case(
    op="fused_experts",
    spec=MoESpec(routing=RoutingSpec(top_k=2, renormalize=True)),
    num_tokens=12,
    num_experts=4,
    hidden_size=72,
    intermediate_size=40,
    dtype="fp32",
)


@pytest.mark.parametrize("name", list(CLASSES))
def test_no_legal_variant_is_accused(name: str) -> None:
    for number in range(12):
        case, variant = legal_trial(name, number)
        oracle = Oracle()
        result = judged(case, honest_outputs(case, oracle, variant), oracle, variant)
        assert not result.failed, (variant.words(), case.id, result.message)


@pytest.mark.parametrize("name", ["layer-hashed", "layer-sparsemixer", "layer-zero-experts", "layer-fused-shared"])
@pytest.mark.parametrize("number", [1, 2])
def test_no_variant_is_accused_on_a_layer_of_rare_semantics(name: str, number: int) -> None:
    case = next(case for case in corpus("moe_layer", "quick", 0) if case.name == name)
    oracle = Oracle()
    for requantised_too in (False, True):
        variant = variant_of(number, requantised=requantised_too, known=("declared", "found"))
        result = judged(case, honest_outputs(case, oracle, variant), oracle, variant)
        assert not result.failed, (variant.words(), result.message)


def test_variants_differ_from_each_other_and_not_from_the_mathematics() -> None:
    oracle = Oracle()
    true = oracle.values(SMALL, None).true
    size = oracle.hard_bound(SMALL, STORES[0])
    assert size is not None
    outputs = []
    for chunk, order, splits in ((0, "forward", 1), (16, "backward", 2), (32, "shuffled", 3)):
        variant = Variant(contract=STORES[0], chunk=chunk, order=order, splits=splits)  # type: ignore[arg-type]  # names
        outputs.append(output_of(call_of(SMALL, oracle), variant))
        assert (np.abs(outputs[-1] - true) <= size).all()
    assert len({out.tobytes() for out in outputs}) == 3


def test_chunks_cover_a_sum_once() -> None:
    for number in range(40):
        parts = chunks_of(variant_of(number), 150)
        covered = np.concatenate([np.arange(150)[part] for part in parts])
        assert np.array_equal(np.sort(covered), np.arange(150))


def test_a_variant_is_a_function_of_its_number() -> None:
    assert variant_of(7) == variant_of(7)
    assert len({variant_of(number) for number in range(64)}) == 64
    assert all(variant_of(number, requantised=True).contract.requantises for number in range(16))


def test_requantisation_is_that_of_ml_dtypes() -> None:
    rows = np.array([[448.0, 1.0, -3.3, 0.0], [7.0, -7.0, 0.01, 2.5]], np.float32)
    found = requantised(rows, Quantizer())
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(448)
    expected = (rows / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    assert np.array_equal(found, expected)
    powers = requantised(rows, Quantizer(scale="power_of_two"))
    assert np.array_equal(powers[0], rows[0].astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize("number", range(len(REQUANTISED)))
def test_the_unchanged_quantisers_give_the_references_own_output(number: int) -> None:
    """What a mutant of a quantiser is made from is right until it is changed."""
    contract, oracle, case = REQUANTISED[number], Oracle(), replace(SMALL, dtype="bf16")
    unrounded = with_requantised(call_of(case, oracle), contract)
    rounded = oracle.values(case, contract).rounded
    allowed = 2.0**-8 * np.abs(unrounded) + gamma(case.intermediate_size, U32) * np.abs(unrounded).max()
    assert (np.abs(unrounded - rounded) <= allowed).all()


@pytest.mark.parametrize("name", ["drop_last_k_tile/last 16 of H", "swap_gate_up", "factor", "truncating_store/h"])
def test_a_mutant_is_seen_in_a_variant(name: str) -> None:
    one = next(one for one in all_mutants() if one.id == name)
    case, oracle, variant = replace(SMALL, dtype="bf16", num_tokens=64), Oracle(), variant_of(3)
    assert not judged(case, honest_outputs(case, oracle, variant), oracle, variant).failed
    result = judged(case, outputs_with(one, case, oracle, variant), oracle, variant)
    assert result.failed
    assert result.checks


def test_quantised_mutants_get_a_contract_that_they_are_about() -> None:
    for group in planted("fused_experts", 5, all_mutants()):
        for one in group.mutants:
            assert one.under is None or one.under(group.variant.contract)
    names = {one.id for group in planted("fused_experts", 5, all_mutants()) for one in group.mutants}
    assert names == {one.id for one in all_mutants() if "fused_experts" in one.ops}


def test_every_case_of_the_corpus_has_a_variant() -> None:
    for op in JUDGED_OPS:
        for case in corpus(op, "default", 1):
            assert op == "topk_routing" or takes(call_of(case, Oracle())), case.id


def test_nightly_cases_are_those_of_the_profile_drawn_ones_last() -> None:
    cases = list(in_turn("grouped_gemm", "nightly", 0))
    assert {case.digest for case in cases} == {case.digest for case in corpus("grouped_gemm", "nightly", 0)}
    assert len({case.digest for case in cases}) == len(cases)
    named = [bool(case.name) for case in cases]
    assert named == sorted(named, reverse=True)
    assert not all(named)


def test_quantised_weights_are_read_as_numbers() -> None:
    case = next(case for case in corpus("fused_experts", "quick", 0) if case.spec.experts.quantization)
    oracle, variant = Oracle(), variant_of(0)
    (out,) = honest_outputs(case, oracle, variant)
    assert np.isfinite(to_float64(out)).all()
    assert not judged(case, (out,), oracle, variant).failed


def test_ties_that_a_gate_s_last_bits_decide_to_one_side_accuse_no_activation() -> None:
    # Every gate in turn: sigmoid(g) is 1/2 in fp32 for small ones, and g (u + 1) / 2 is often a tie in bf16.
    case, variant = legal_trial("bf16", 395)
    assert case.name == "every-gate-swigluoai"
    oracle = Oracle()
    assert not judged(case, honest_outputs(case, oracle, variant), oracle, variant).failed
