"""Products of rows in groups, in which estimates of several questions share each matrix; against plain float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.curated import cases_for
from moecheck.formats import Float64
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import call_reference, reference_modules
from moecheck.quantization import SCHEMES
from moecheck.quantized_inputs import dequantised
from moecheck.references._row_groups import COLUMNS, Group, products
from tests.bounds import U32, gamma

SIZES = (3, 0, 1)  # rows of each group
WIDTH = 5
# W in fp32 (1), its square (2 for the two factors, 1 for the product), the row in fp32, the product and the sum.
ROUNDINGS = 2 + 1 + 1 + 1 + WIDTH


def grouped(scale: float, columns: int = COLUMNS + 3) -> tuple[list[Group], list[Float64]]:
    rng = np.random.default_rng(1)
    matrices = [rng.normal(size=(columns, WIDTH)) * scale for _ in SIZES]
    ends = np.cumsum(SIZES)
    groups = [
        Group(slice(int(end) - size, int(end)), partial(_same, w))
        for end, size, w in zip(ends, SIZES, matrices, strict=True)
    ]
    return groups, matrices


def _same(w: Float64) -> Float64:
    return w


def by_row(matrices: list[Float64], x: Float64) -> Float64:
    """Each row times its own matrix."""
    of_row = np.repeat(np.arange(len(SIZES)), SIZES)
    return np.stack([[np.sum(w * row) for w in matrices[group]] for group, row in zip(of_row, x, strict=True)])


@pytest.mark.parametrize(
    ("scale", "largest"),
    [
        pytest.param(1.0, 1.0, id="usual weights, in fp32"),
        pytest.param(1e-9, 1.0, id="weights too small for squares in fp32"),
        pytest.param(1e6, 1.0, id="weights too large for squares in fp32"),
        pytest.param(1.0, 1e-60, id="a term too small for fp32 beside the others"),
        pytest.param(1.0, 1e300, id="rows near the end of float64"),
        pytest.param(1.0, 0.0, id="rows of zeros"),
    ],
)
def test_every_row_meets_the_matrix_of_its_group(scale: float, largest: float) -> None:
    groups, matrices = grouped(scale)
    rng = np.random.default_rng(2)
    x, other = rng.normal(size=(2, sum(SIZES), WIDTH))
    each, rare = rng.random((2, sum(SIZES), WIDTH)) * largest
    if largest == 1e-60:
        each[:, 1:] = 1.0
    found = products(groups, [x, other], squared=[each, rare], sized=[rare], norms=True)
    for y, given in zip(found.values, (x, other), strict=True):
        magnitude = by_row([np.abs(w) for w in matrices], np.abs(given))
        assert (np.abs(y - by_row(matrices, given)) <= gamma(2 * WIDTH, 2.0**-53) * magnitude).all()
    for y, given in zip(found.squares, (each, rare), strict=True):
        expected = by_row([np.square(w) for w in matrices], given)
        assert (np.abs(y - expected) <= gamma(ROUNDINGS, U32) * expected).all()
    expected = by_row([np.abs(w) for w in matrices], rare)
    assert (np.abs(found.sizes[0] - expected) <= gamma(ROUNDINGS, U32) * expected).all()
    expected = by_row([np.square(w) for w in matrices], np.ones(x.shape))
    assert (np.abs(found.norms - expected) <= gamma(2 * WIDTH, 2.0**-53) * expected).all()


def test_a_row_that_is_not_a_number_leaves_the_others_alone() -> None:
    groups, _ = grouped(1.0)
    each = np.ones((sum(SIZES), WIDTH))
    each[1, 2] = np.nan
    found = products(groups, [each], squared=[each])
    alone = np.arange(len(each)) != 1
    assert np.isnan(found.squares[0, 1]).all()
    assert np.isfinite(found.squares[0, alone]).all()


NVFP4 = SCHEMES["nvfp4"]
CONTRACTS = {
    "three stores": Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    "every store, sums by slot": Numerics(
        topk_weights=INPUT, gate_up=INPUT, act=INPUT, per_expert=INPUT, weighted=INPUT, combine="bf16",
        combine_order="slot",
    ),
    "sums by expert": Numerics(topk_weights="bf16", combine="bf16", combine_order="expert"),
    "only the output": Numerics(),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("op", ["fused_experts", "moe_layer", "grouped_gemm", "unpermute"])
def test_both_questions_asked_at_once_have_the_same_answers(op: str, name: str) -> None:
    for case in cases_for(op, profile="default", seed=0)[:40:13]:
        assert_same_answers(case, CONTRACTS[name])


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("op", ["expert_outputs", "batched_experts"])
def test_both_questions_about_experts_that_are_not_added_up(op: str, name: str) -> None:
    for case in cases_for(op, profile="quick", seed=0, small=True)[:6:3]:
        assert_same_answers(case, CONTRACTS[name])


@pytest.mark.parametrize("name", CONTRACTS)
def test_both_questions_about_latent_experts(name: str) -> None:
    cases = [case for case in cases_for("moe_layer", profile="quick", seed=0, small=True) if case.spec.latent_experts]
    assert cases
    for case in cases:
        assert_same_answers(case, CONTRACTS[name])


def test_both_questions_about_weights_that_are_stored_after_dequantising() -> None:
    contract = replace(CONTRACTS["three stores"], dequantised="bf16")
    case = cases_for("fused_experts", profile="quick", seed=0, small=True, quantizations=(NVFP4,), plain_weights=False)[
        0
    ]
    assert_same_answers(case, contract)
    # These weights have more digits than bf16, so the two questions are about different matrices.
    of_exact_weights, about_exact_weights = answers(case, CONTRACTS["three stores"], both=True)
    about_true, about_rounded = answers(case, contract, both=True)
    np.testing.assert_array_equal(about_true.value, of_exact_weights.value)
    assert np.any(about_rounded.value != about_exact_weights.value)


def assert_same_answers(case: Case, contract: Numerics) -> None:
    """Both questions at once and each alone have the same answers, whose sums along rows can be asked about."""
    about_true, about_rounded = answers(case, contract, both=True)
    for together, alone in (
        (about_true, answers(case, contract)[0]),
        (about_rounded, answers(case, contract, flips=True)[0]),
    ):
        np.testing.assert_array_equal(together.value, alone.value)
        # Variances are sums of products in fp32, of at most 2048 + 512 terms here, of which sigma is the root.
        assert close(together.sigma, alone.sigma, gamma(2560, U32))
    with np.errstate(all="ignore"):
        c = np.nan_to_num(1.0 / about_rounded.sigma, posinf=0.0, neginf=0.0)
        (one, _), (two, _) = about_rounded.projections(c, 2.0 * c)
    assert close(two, 4.0 * one, gamma(2560, U32))


def answers(case: Case, contract: Numerics, **asked: Any) -> tuple[Any, Any]:
    """The reference's answer, and the second one that it holds."""
    estimate = reference_modules()[case.op].estimate
    inputs = dequantised(case, case.inputs())
    found = call_reference(estimate, case, inputs, numerics=contract, dtype=case.dtype, **asked)
    return found, found.about_rounded


def close(a: Float64, b: Float64, bound: float) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(((np.abs(a - b) <= bound * np.abs(b)) | (a == b) | (np.isnan(a) & np.isnan(b))).all())
