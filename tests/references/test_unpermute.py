"""unpermute: hand-worked sums, the way back from permute, its rounding points and its sigma."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.formats import round_to, store
from moecheck.numerics import Numerics
from moecheck.references.permute import permute
from moecheck.references.unpermute import estimate, unpermute
from tests.bounds import CALIBRATED_RMS, z_limit

ROWS = np.array([[1.0, -2.0], [4.0, 8.0], [np.nan, np.nan]], dtype=np.float32)
INVERSE = np.array([[1, 0], [-1, 0], [-1, -1]], dtype=np.int32)
WEIGHTS = np.array([[0.5, 0.25], [7.0, 2.0], [1.0, 1.0]], dtype=np.float32)


def test_slots_are_weighted_and_added_and_missing_ones_skipped() -> None:
    out = unpermute(permuted=ROWS, topk_weights=WEIGHTS, inv_permuted_idx=INVERSE)
    np.testing.assert_array_equal(out, [[2.25, 3.5], [2.0, -4.0], [0.0, 0.0]])


def test_it_undoes_permute() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, size=(9, 5)).astype(np.float32)
    ids = np.argsort(rng.random((9, 6)), axis=1)[:, :4].astype(np.int32)
    permuted, _, _, inverse = permute(hidden_states=x, topk_ids=ids, num_experts=6)
    quarter = np.full(ids.shape, 0.25, dtype=np.float32)
    np.testing.assert_array_equal(unpermute(permuted=permuted, topk_weights=quarter, inv_permuted_idx=inverse), x)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param("slot", 256.0, id="by slot: 256 + 1 rounds back to 256, twice"),
        pytest.param("expert", 258.0, id="by row: 1 + 1 + 256 is a bf16 number"),
        pytest.param("tree", 258.0, id="a tree keeps fp32"),
    ],
)
def test_partial_sums_round_in_the_declared_order(order: str, expected: float) -> None:
    rows = store(np.array([[1.0], [1.0], [256.0]]), "bf16")
    contract = Numerics(combine="bf16", combine_order=order)  # type: ignore[arg-type]  # one of the three literals
    one = np.ones((1, 3), dtype=np.float32)
    out = unpermute(permuted=rows, topk_weights=one, inv_permuted_idx=np.array([[2, 0, 1]]), numerics=contract)
    np.testing.assert_array_equal(out, [[expected]])


def test_weights_and_products_round_where_declared() -> None:
    rows = store(np.array([[3.0]]), "bf16")
    weight = np.array([[1.0 + 2.0**-7 + 2.0**-9]], dtype=np.float32)
    kept = unpermute(
        permuted=rows, topk_weights=weight, inv_permuted_idx=np.array([[0]]), numerics=Numerics(out="fp32")
    )
    low = unpermute(
        permuted=rows,
        topk_weights=weight,
        inv_permuted_idx=np.array([[0]]),
        numerics=Numerics(topk_weights="bf16", out="fp32"),
    )
    assert kept == 3.0 * float(weight[0, 0])
    assert low == 3.0 * (1.0 + 2.0**-7)


@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("low", ["fp32", "bf16"])
def test_sigma_is_that_of_a_kernel_with_these_stores(top_k: int, low: str) -> None:
    rng = np.random.default_rng(top_k)
    rows = store(rng.standard_normal((64 * top_k, 128)), "bf16")
    weights = rng.random((64, top_k)).astype(np.float32)
    inverse = rng.permutation(64 * top_k).reshape(64, top_k)
    contract = Numerics(topk_weights=low, weighted=low, combine=low, combine_order="slot")
    value, sigma = estimate(permuted=rows, topk_weights=weights, inv_permuted_idx=inverse, numerics=contract)
    total = np.zeros(value.shape)
    for slot in range(top_k):  # rounded products and sums, one after the other
        w = round_to(weights[:, slot : slot + 1].astype(np.float64), low)
        total = round_to(total + round_to(w * rows[inverse[:, slot]].astype(np.float64), low), low)
    z = (round_to(total, "bf16") - value) / sigma
    assert CALIBRATED_RMS[0] <= np.sqrt(np.mean(z**2)) <= CALIBRATED_RMS[1]
    assert np.abs(z).max() <= z_limit(z.size)


def test_a_token_without_rows_must_be_exactly_zero() -> None:
    value, sigma = estimate(permuted=ROWS, topk_weights=WEIGHTS, inv_permuted_idx=INVERSE)
    np.testing.assert_array_equal(value[2], 0.0)
    np.testing.assert_array_equal(sigma[2], 0.0)
    assert (sigma[:2] > 0.0).all()
