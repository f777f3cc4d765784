"""Quantisers: every number of every format, scales and groups, and the error that a requantised value carries."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from moecheck.formats import AnyArray, Float64, to_float64
from moecheck.quantizer import CODES, Quantizer
from moecheck.references._quantize import code_step, coded, quantized, requantized, scale_of
from moecheck.references._stores import Estimate
from moecheck.references.quantize_blocks import dequantize_blocks, quantize_blocks_e8m0
from tests.bounds import CALIBRATED_RMS, FLIP_VARIANCE

STORED: dict[str, Any] = {
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "int8": np.int8,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
FP8 = ("fp8_e4m3fn", "fp8_e4m3fnuz", "fp8_e5m2")
EVERY_BF16 = to_float64(np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16))


def stored(values: AnyArray, name: str) -> Float64:
    """What a library's conversion leaves of values that were clamped before it, NaN apart."""
    limit = CODES[name].max_value
    inside = np.clip(values, -limit, limit)
    inside = np.rint(inside) if name == "int8" else inside
    return inside.astype(np.float32).astype(STORED[name]).astype(np.float64)


@pytest.mark.parametrize("name", FP8)
def test_every_number_of_a_format_stays_as_it_is(name: str) -> None:
    numbers = np.arange(256, dtype=np.uint8).view(STORED[name]).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    assert np.array_equal(coded(numbers, name), numbers)
    assert numbers.max() == CODES[name].max_value


def test_every_number_of_int8_but_the_least_stays_as_it_is() -> None:
    numbers = np.arange(-128, 128).astype(np.float64)
    assert np.array_equal(coded(numbers, "int8")[1:], numbers[1:])
    assert coded(numbers, "int8")[0] == -CODES["int8"].max_value


@pytest.mark.parametrize("name", CODES)
def test_every_bf16_number_is_converted_as_ml_dtypes_does(name: str) -> None:
    numbers = EVERY_BF16[~np.isnan(EVERY_BF16)]
    assert np.array_equal(coded(numbers, name), stored(numbers, name))
    assert np.isnan(coded(EVERY_BF16[np.isnan(EVERY_BF16)], name)).all()


@pytest.mark.parametrize("name", FP8)
def test_the_step_is_the_distance_to_the_next_number(name: str) -> None:
    numbers = np.arange(128, dtype=np.uint8).view(STORED[name]).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    assert np.array_equal(code_step(numbers[:-1], name), np.diff(numbers))


@pytest.mark.parametrize("name", CODES)
def test_a_power_of_two_scale_is_the_next_one_up(name: str) -> None:
    limit = CODES[name].max_value
    amax = np.concatenate([np.abs(EVERY_BF16), limit * 2.0 ** np.arange(-20, 20)]).astype(np.float32)
    amax = amax[np.isfinite(amax) & (amax > 0)]
    plain = scale_of(amax, Quantizer(format=name, eps=1e-30))
    scale = scale_of(amax, Quantizer(format=name, eps=1e-30, scale="power_of_two"))
    assert np.all(np.frexp(scale)[0] == 0.5)
    assert np.all((scale >= plain) & (scale < 2 * plain))
    assert np.all(scale[-40:] == 2.0 ** np.arange(-20, 20))


@pytest.mark.parametrize("division", ["divide", "multiply"])
@pytest.mark.parametrize("group", [0, 128, 48])
@pytest.mark.parametrize("name", CODES)
def test_groups_are_quantised_as_a_plain_loop_does(name: str, group: int, division: Any) -> None:
    x = np.random.default_rng(3).normal(size=(5, 200)).astype(np.float32)
    x[1] = 0.0
    wanted = np.zeros(x.shape)
    for row in range(len(x)):
        for start in range(0, 200, group or 200):
            part = x[row, start : start + (group or 200)]
            scale = max(np.abs(part).max(), np.float32(1e-10)) / np.float32(CODES[name].max_value)
            quotient = part / scale if division == "divide" else part * (np.float32(1) / scale)
            wanted[row, start : start + len(part)] = stored(quotient, name) * float(scale)
    found = quantized(x.astype(np.float64), Quantizer(format=name, group=group, division=division))
    assert np.array_equal(found.value, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_spoils_its_own_group_only(bad: float) -> None:
    x = np.ones((2, 8))
    x[0, 5] = bad
    value = quantized(x, Quantizer(group=4)).value
    assert np.isnan(value[0, 5])
    assert np.isfinite(value[0, :4]).all()
    assert np.isfinite(value[1]).all()


def test_no_columns_and_no_rows_are_left_as_they_are() -> None:
    for shape in ((0, 4), (3, 0)):
        assert quantized(np.zeros(shape), Quantizer()).value.shape == shape
        estimate, _ = requantized(given(np.zeros(shape), 0.0), Quantizer())
        assert estimate.value.shape == shape


def given(values: Float64, sd: float) -> Estimate:
    """Values with normal errors of standard deviation `sd`, about the rounded reference."""
    zeros = np.zeros(values.shape)
    return Estimate(values, np.full(values.shape, sd**2), zeros, zeros)


def normals(*shape: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(7).normal(size=shape)


@pytest.mark.parametrize("scale", ["float", "power_of_two"])
@pytest.mark.parametrize("name", CODES)
def test_the_error_about_the_true_value_is_the_step_over_the_root_of_twelve(name: str, scale: Any) -> None:
    x = normals(64, 256)
    quantizer = Quantizer(format=name, group=128, scale=scale)
    estimate, _ = requantized(Estimate(x, np.zeros(x.shape)), quantizer)
    assert np.array_equal(estimate.value, x)
    z = (quantized(x, quantizer).value - x) / np.sqrt(estimate.variance)
    assert CALIBRATED_RMS[0] <= np.sqrt(np.mean(z**2)) <= CALIBRATED_RMS[1]


@pytest.mark.parametrize("scale", ["float", "power_of_two"])
@pytest.mark.parametrize("sd", [1e-4, 1e-3, 0.3])
def test_the_deviation_from_the_rounded_value_has_the_variance_of_the_flip_law(sd: float, scale: Any) -> None:
    x = normals(256, 256)
    quantizer = Quantizer(group=128, scale=scale)
    estimate, _ = requantized(given(x, sd), quantizer)
    moved = quantized(x + sd * np.random.default_rng(8).normal(size=x.shape), quantizer).value
    assert np.array_equal(estimate.value, quantized(x, quantizer).value)
    ratio = np.mean(np.square(moved - estimate.value)) / np.mean(estimate.variance)
    assert FLIP_VARIANCE[0] <= ratio <= FLIP_VARIANCE[1]


@pytest.mark.parametrize("scale", ["floor", "half_up", "cutlass"])
@pytest.mark.parametrize("name", ["fp4_e2m1", "fp8_e4m3fn", "int8"])
def test_microscaling_groups_are_those_of_the_weights(name: str, scale: Any) -> None:
    x = normals(16, 80).astype(np.float32).astype(np.float64)
    x[3] = 0.0
    codes, scales = quantize_blocks_e8m0(x, name, (1, 32), scale)
    found = quantized(x, Quantizer(format=name, group=32, scale=scale))
    assert np.array_equal(found.value, dequantize_blocks(codes, scales, name, (1, 32)))


@pytest.mark.parametrize("scale", ["floor", "half_up", "cutlass"])
@pytest.mark.parametrize("sd", [1e-4, 1e-3])
def test_microscaling_deviates_by_the_flip_law(sd: float, scale: Any) -> None:
    x = normals(256, 256)
    quantizer = Quantizer(format="fp4_e2m1", group=32, scale=scale)
    estimate, _ = requantized(given(x, sd), quantizer)
    moved = quantized(x + sd * np.random.default_rng(8).normal(size=x.shape), quantizer).value
    ratio = np.mean(np.square(moved - estimate.value)) / np.mean(estimate.variance)
    assert FLIP_VARIANCE[0] <= ratio <= FLIP_VARIANCE[1]


def test_truncation_goes_toward_zero() -> None:
    x = normals(4, 64).astype(np.float32)
    scale = (np.abs(x).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
    wanted = np.trunc(x / scale).astype(np.float64) * scale.astype(np.float64)
    found = quantized(x.astype(np.float64), Quantizer(format="int8", rounding="truncate"))
    assert np.array_equal(found.value, wanted)
    assert np.all(np.abs(found.value) <= np.abs(x) * (1.0 + 2.0**-22))


@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("name", CODES)
def test_a_scale_at_a_boundary_may_go_to_either_power_of_two(name: str, side: float) -> None:
    x = normals(64, 128) * 1e-3
    x[:, 0] = CODES[name].max_value / 256.0 * (1.0 + side * 1e-7)
    quantizer = Quantizer(format=name, scale="power_of_two")
    near, _ = requantized(given(x, 1e-6 * float(x[0, 0])), quantizer)
    x[:, 0] *= 1.0 - side * 2e-7
    across = quantized(x, quantizer).value - near.value
    assert near.rare is not None
    changed = np.abs(across[:, 1:]) > 0.0
    assert np.all(near.rare[:, 1:][changed] >= np.square(across[:, 1:][changed]) / 2.0)
    assert changed.any() == (name == "int8" or bool(np.any(np.abs(x[:, 1:]) < 2.0 ** CODES[name].min_exponent / 256.0)))
    x[:, 0] *= 0.9
    far, _ = requantized(given(x, 1e-6 * float(x[0, 0])), quantizer)
    assert far.rare is not None
    assert np.mean(far.rare) < np.mean(near.rare) or not changed.any()


@pytest.mark.parametrize("name", CODES)
def test_a_static_quantiser_divides_by_what_it_is_given(name: str) -> None:
    x = normals(4, 96).astype(np.float32).astype(np.float64)
    given_scale = 0.0123
    found = quantized(x, Quantizer(format=name, static=True), given_scale)
    scale = np.float32(given_scale)
    assert np.array_equal(found.value, stored(x.astype(np.float32) / scale, name) * float(scale))
    with pytest.raises(ValueError, match="static"):
        quantized(x, Quantizer(format=name, static=True))


def test_a_static_scale_does_not_move_with_the_largest_value() -> None:
    x = normals(64, 128)
    moved, step = requantized(given(x, 1e-6), Quantizer(static=True), 0.01)
    usual, _ = requantized(given(x, 1e-6), Quantizer())
    assert np.all(moved.dense == 0.0)
    assert np.any(usual.dense > 0.0)
    assert moved.rare is not None
    assert np.all(moved.rare <= np.square(step))


def test_a_scale_times_the_reciprocal_differs_in_its_last_bit() -> None:
    amax = np.abs(normals(1000)).astype(np.float32)
    divided, multiplied = scale_of(amax, Quantizer()), scale_of(amax, Quantizer(amax="multiply"))
    assert np.array_equal(multiplied, amax * (np.float32(1) / np.float32(448)))
    assert 0 < np.count_nonzero(divided != multiplied) < len(amax)
    assert np.max(np.abs(divided - multiplied) / divided) <= 2.0 * 2.0**-24 * 2.0
