"""grouped_gemm: exact integers, every pattern of empty groups, rounding and sigma."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from moecheck.formats import AnyArray, store
from moecheck.numerics import Numerics
from moecheck.references.grouped_gemm import estimate, grouped_gemm
from tests.bounds import BLOCKED_RMS, CALIBRATED_RMS, z_limit

X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], dtype=np.float32)
W = np.array([[[1, 0]], [[9, 9]], [[-1, 2]]], dtype=np.float32)


def test_each_row_meets_its_group_s_matrix_and_bias() -> None:
    y = grouped_gemm(x=X, w=W, expert_ends=np.array([2, 2, 3]), bias=np.array([[0.5], [8.0], [-1.0]]))
    np.testing.assert_array_equal(y, [[1.5], [3.5], [6.0], [np.nan]])


@pytest.mark.parametrize("empty", list(itertools.product([False, True], repeat=4)), ids=str)
def test_any_pattern_of_empty_groups_is_a_loop_over_rows(empty: tuple[bool, ...]) -> None:
    rng = np.random.default_rng(1)
    counts = np.where(empty, 0, [1, 3, 2, 4])
    owner = np.repeat(np.arange(4), counts)
    x, w = rng.integers(-4, 5, (len(owner), 6)), rng.integers(-4, 5, (4, 5, 6))
    y = grouped_gemm(x=x.astype(np.float32), w=w.astype(np.float32), expert_ends=np.cumsum(counts))
    assert y.shape == (len(owner), 5)
    for row, expert in enumerate(owner):
        np.testing.assert_array_equal(y[row], w[expert] @ x[row])


def test_a_group_without_rows_is_not_asked_for() -> None:
    class OnlyFirst:
        shape = (3, 1, 2)

        def __getitem__(self, expert: int, /) -> AnyArray:
            assert expert == 0
            first: AnyArray = W[0]
            return first

    y = grouped_gemm(x=X, w=OnlyFirst(), expert_ends=np.array([4, 4, 4]))
    np.testing.assert_array_equal(y, X[:, :1])


@pytest.mark.parametrize("k", [64, 512, 2048])
@pytest.mark.parametrize(
    ("dtype", "limits"), [("bf16", CALIBRATED_RMS), ("fp16", CALIBRATED_RMS), ("fp32", BLOCKED_RMS)]
)
def test_sigma_is_that_of_torch(k: int, dtype: str, limits: tuple[float, float]) -> None:
    rng = np.random.default_rng(k)
    x, w = (store(rng.standard_normal(shape) / np.sqrt(k), dtype) for shape in ((40, k), (2, 96, k)))
    ends = np.array([15, 40])
    value, sigma = estimate(x=x, w=w, expert_ends=ends)
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    a, b = (torch.tensor(part.astype(np.float32)).to(torch_dtype) for part in (x, w))
    y = torch.cat([a[:15] @ b[0].T, a[15:] @ b[1].T]).double().numpy()
    z = (y - value) / sigma
    assert limits[0] <= np.sqrt(np.mean(z**2)) <= limits[1]
    assert np.abs(z).max() <= z_limit(z.size)


def test_the_output_rounds_once() -> None:
    x, w = np.array([[1.0, 2.0**-8]], dtype=np.float32), np.array([[[1.0, 1.0]]], dtype=np.float32)
    ends = np.array([1])
    assert grouped_gemm(x=x, w=w, expert_ends=ends) == 1.0 + 2.0**-8
    assert grouped_gemm(x=x, w=w, expert_ends=ends, numerics=Numerics(), dtype="bf16") == 1.0
    value, sigma = estimate(x=x, w=w, expert_ends=np.array([0]), bias=np.zeros((1, 1)))
    assert np.isnan(value).all()
    assert np.isnan(sigma).all()
