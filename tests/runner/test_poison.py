"""Uninitialised memory is poisoned while a kernel runs, and only then."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moecheck.runner.poison import INTEGER_POISON, fill, poisoned_allocations


def test_torch_allocations_are_poisoned_inside_and_restored_after() -> None:
    originals = (torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty)
    with poisoned_allocations():
        tensors = [
            torch.empty(3, 4),
            torch.empty((2,), dtype=torch.bfloat16),
            torch.empty_like(torch.zeros(5)),
            torch.empty_strided((2, 2), (4, 1)),
            torch.zeros(1).new_empty((7,)),
        ]
        integers = torch.empty(3, dtype=torch.int32)
    assert all(bool(tensor.isnan().all()) for tensor in tensors)
    assert integers.tolist() == [INTEGER_POISON] * 3
    assert (torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty) == originals


def test_numpy_allocations_are_poisoned_inside_and_restored_after() -> None:
    originals = (np.empty, np.empty_like)
    with poisoned_allocations():
        assert np.isnan(np.empty((2, 3))).all()
        assert np.isnan(np.empty_like(np.zeros(3, np.float16))).all()
        assert (np.empty(2, np.int64) == INTEGER_POISON).all()
    assert (np.empty, np.empty_like) == originals


def test_originals_come_back_after_an_error() -> None:
    original = torch.empty
    with pytest.raises(ZeroDivisionError), poisoned_allocations():
        raise ZeroDivisionError
    assert torch.empty is original


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.complex64, torch.float8_e4m3fn, torch.float64], ids=str
)
def test_every_dtype_can_be_allocated(dtype: torch.dtype) -> None:
    with poisoned_allocations():
        assert torch.empty(3, dtype=dtype).shape == (3,)


def test_an_empty_array_and_a_structured_one_survive() -> None:
    assert fill(np.zeros(0)).size == 0
    assert fill(np.zeros(2, np.uint8)).dtype == np.uint8
