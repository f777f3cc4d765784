"""Arrays travel between NumPy and the frameworks bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from moecheck.formats import AnyArray
from moecheck.runner.arrays import device_of, overwritten, to_native, to_numpy
from moecheck.testing.host import host_array

ALL_BITS = np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.parametrize("backend", ["torch", "jax", "numpy"])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["bf16", "fp16"])
def test_all_bit_patterns_survive(backend: str, dtype: type[np.generic]) -> None:
    array: AnyArray = ALL_BITS.view(dtype)
    back = to_numpy(to_native(array, backend))
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz"])
def test_fp8_survives_in_versions_of_torch_whose_numpy_does_not_know_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.Tensor.numpy

    def numpy(tensor: torch.Tensor) -> AnyArray:  # as torch 2.11
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
            raise TypeError(f"Got unsupported ScalarType {tensor.dtype}")
        return plain(tensor)

    monkeypatch.setattr(torch.Tensor, "numpy", numpy)
    array: AnyArray = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name))
    for back in (to_numpy(to_native(array, "torch")), host_array("x", to_native(array, "torch"))):
        assert back.dtype == array.dtype
        assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("backend", ["torch", "jax", "numpy"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.int32], ids=["float32", "int32"])
def test_shapes_survive(backend: str, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    array: AnyArray = np.ones(shape, dtype)
    back = to_numpy(to_native(array, backend))
    assert (back.shape, back.dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32], ids=["bf16", "fp32"])
def test_strided_rows_stay_strided_in_torch(dtype: type[np.generic]) -> None:
    array: AnyArray = np.zeros((4, 10), dtype)[:, :6]
    tensor = to_native(array, "torch")
    assert (tuple(tensor.shape), tensor.stride()) == ((4, 6), (10, 1))
    assert not tensor.is_contiguous()


def test_an_output_is_a_copy() -> None:
    tensor = torch.zeros(3)
    array = to_numpy(tensor)
    tensor += 1
    assert array.tolist() == [0, 0, 0]


def test_a_tensor_that_wants_its_gradient_or_is_a_lazy_view_is_read() -> None:
    assert to_numpy(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
    assert to_numpy(torch.ones(2, dtype=torch.complex64).conj()).tolist() == [1, 1]
    assert to_numpy(torch.ones(2, 3, dtype=torch.bfloat16).T).shape == (3, 2)


@pytest.mark.parametrize("value", [None, [1.0], 3, "x", {"out": 1}, object()], ids=lambda value: type(value).__name__)
def test_what_is_no_array_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="is no torch, jax or NumPy array"):
        to_numpy(value)


def test_devices_without_an_accelerator() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert [device_of(backend) for backend in ("torch", "triton", "jax", "pallas_tpu", "numpy")] == [
        "cpu",
        "interpreter",
        "cpu",
        "interpreter",
        "cpu",
    ]


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_a_buffer_takes_other_values(backend: str) -> None:
    buffer, other = (to_native(np.arange(6, dtype=np.float32).reshape(2, 3) + n, backend) for n in (0, 7))
    assert overwritten(buffer, other) is buffer
    assert to_numpy(buffer).tolist() == [[7, 8, 9], [10, 11, 12]]
    assert to_numpy(other).tolist() == to_numpy(buffer).tolist()


def test_what_is_no_buffer_is_left_alone() -> None:
    array = to_native(np.zeros(3, np.float32), "torch")
    assert overwritten(None, array) is array
    for other in (np.zeros(4, np.float32), np.zeros(3, np.int32)):
        assert overwritten(to_native(other, "torch"), array) is array
    fixed = to_native(np.ones(3, np.float32), "jax")
    new = to_native(np.zeros(3, np.float32), "jax")
    assert overwritten(fixed, new) is new
    assert to_numpy(fixed).tolist() == [1, 1, 1]


def test_memory_is_not_copied_onto_itself() -> None:
    """Weights of a large layer are mapped from a file: writing them would make them this process's own."""
    mapped = np.zeros(3, np.float32)
    buffer = to_native(mapped, "torch")
    assert overwritten(buffer, to_native(mapped, "torch")) is buffer
    assert buffer._version == 0  # torch counts the writes
    overwritten(buffer, to_native(np.ones(3, np.float32), "torch"))
    assert buffer._version == 1
