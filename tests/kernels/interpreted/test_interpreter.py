"""Triton's interpreter: still wrong as it comes, and right once corrected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
from triton.runtime import interpreter

import moecheck.kernels.triton  # noqa: F401  # corrects the interpreter, whichever tests run before
from moecheck import Unsupported
from moecheck.runner import triton_interpreter
from tests.kernels.interpreted import programs

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter as Triton ships it."""
    for name, method in triton_interpreter.STOCK.items():
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, method)


def floats() -> torch.Tensor:
    """A million float32 values of random bits (Inf, NaN and subnormals among them), and ties and neighbours of ties."""
    bits = np.random.default_rng(0).integers(0, 2**32, size=2**20 - 2**15, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(2**13, dtype=np.uint32) << 19) + np.array([[0x8000], [0x7FFF], [0x8001], [0]], dtype=np.uint32)
    return torch.from_numpy(np.concatenate([bits, ties.ravel()]).view(np.float32))


def moderate() -> torch.Tensor:
    """float32 values over the range of the 8-bit formats: subnormals, all their ties, and overflow."""
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2).float()
    grid = torch.cat([grid, torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()])
    grid = torch.unique(grid[grid.isfinite()])
    middle = (grid[1:] + grid[:-1]) / 2
    random = torch.from_numpy(np.random.default_rng(1).normal(size=2**16).astype(np.float32)) * 2.0 ** (
        torch.arange(2**16) % 32 - 18
    )
    beside = [torch.nextafter(middle, torch.full_like(middle, end)) for end in (torch.inf, -torch.inf)]
    return torch.cat([grid, middle, *beside, random, torch.tensor([torch.nan, torch.inf, -torch.inf])])


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal bit for bit, any NaN counting as any other."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[ours.element_size()]
    nan = ours.float().isnan()
    return torch.equal(nan, theirs.float().isnan()) and torch.equal(ours.view(bits)[~nan], theirs.view(bits)[~nan])


@pytest.mark.usefixtures("stock")
def test_stock_dot_multiplies_bit_patterns_of_bf16() -> None:
    ones = torch.ones(16, 16, dtype=torch.bfloat16)
    assert not torch.equal(programs.dot(ones, ones), torch.full((16, 16), 16.0))


@pytest.mark.usefixtures("stock")
def test_stock_product_multiplies_bit_patterns_of_bf16() -> None:
    ones = torch.ones(16, dtype=torch.bfloat16)
    assert not torch.equal(programs.product(ones, ones), ones)


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        pytest.param(1.0 + 2.0**-8 + 2.0**-9, torch.bfloat16, id="bf16 truncates"),
        pytest.param(1.9999999, torch.float8_e4m3fn, id="e4m3 loses the carry"),
        pytest.param(float("nan"), torch.float8_e4m3fn, id="e4m3 makes NaN finite"),
    ],
)
def test_stock_cast_is_wrong(value: float, dtype: torch.dtype) -> None:
    x = torch.full((16,), value)
    assert not same(programs.cast(x, dtype), x.to(dtype))


@pytest.mark.usefixtures("stock")
def test_stock_loads_the_e4m3_nan_as_a_number() -> None:
    nan = torch.full((16,), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert bool(programs.cast(nan, torch.float32).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_of_a_million_floats_equal_torch(dtype: torch.dtype) -> None:
    assert same(programs.cast(floats(), dtype), floats().to(dtype))


def test_every_bf16_value_is_decoded_as_by_torch() -> None:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    assert same(programs.cast(values, torch.float32), values.float())


@pytest.mark.parametrize("dtype", FP8)
def test_every_fp8_value_is_decoded_as_by_torch(dtype: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    assert same(programs.cast(values, torch.float32), values.float())


@pytest.mark.parametrize("dtype", FP8)
def test_casts_to_fp8_equal_torch_and_saturate_as_a_gpu_does(dtype: torch.dtype) -> None:
    x, largest = moderate(), torch.finfo(dtype).max
    assert same(programs.cast(x, dtype), x.clamp(-largest, largest).to(dtype))


def test_casts_toward_zero_never_grow() -> None:
    x = floats()
    x = x[x.isfinite()]
    truncated = (x.view(torch.int32) & -0x10000).view(torch.float32)
    assert same(programs.cast(x, torch.bfloat16, rounding="rtz").float(), truncated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, *FP8])
def test_dot_is_exact_where_fp32_is(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(2)
    a, b = (torch.from_numpy(rng.integers(-4, 5, size=(32, 32)).astype(np.float32)) for _ in range(2))
    assert torch.equal(programs.dot(a.to(dtype), b.to(dtype)), a @ b)


def test_products_of_bf16_are_rounded_once() -> None:
    rng = np.random.default_rng(3)
    a, b = (torch.from_numpy(rng.normal(size=1024).astype(np.float32)).bfloat16() for _ in range(2))
    assert same(programs.product(a, b), a * b)


def test_another_release_of_triton_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.12.0")
    with pytest.raises(Unsupported, match=r"3\.6 to 3\.9"):
        triton_interpreter.check_internals()


def test_a_numpy_too_new_for_triton_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    monkeypatch.setattr(np, "__version__", "2.4.0")
    with pytest.raises(Unsupported, match="NumPy below 2"):
        triton_interpreter.check_internals()


def test_other_internals_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(triton_interpreter.STOCK, "create_dot", None)
    with pytest.raises(Unsupported, match="create_dot takes None"):
        triton_interpreter.check_internals()


def test_correcting_twice_changes_nothing() -> None:
    before = interpreter.InterpreterBuilder.create_dot
    triton_interpreter.correct()
    assert interpreter.InterpreterBuilder.create_dot is before
