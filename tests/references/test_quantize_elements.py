"""Conversions of elements and scales: every code, and a million random numbers, against ml_dtypes and torch."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from moecheck.elements import ELEMENTS
from moecheck.formats import AnyArray
from moecheck.references.quantize_elements import decode, encode, pack_nibbles, unpack_nibbles
from moecheck.references.quantize_scales import (
    e8m0_decode,
    e8m0_nearest,
    e8m0_of_amax,
    float_scale,
    per_token_scale,
    ue8m0_of_scale,
)

LIBRARY: dict[str, Any] = {
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
TORCH = {
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fnuz": torch.float8_e4m3fnuz,
    "fp8_e5m2": torch.float8_e5m2,
}
INTEGERS = {"int8": np.int8, "int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}
MILLION = 1_000_000


def million() -> npt.NDArray[np.float32]:
    """Any bits of fp32 (subnormals, infinities, NaN), numbers about 1, ties of all formats; a million each."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, MILLION, dtype=np.uint32).view(np.float32)
    usual = rng.normal(size=MILLION) * np.exp2(rng.integers(-20, 12, MILLION))
    ties = rng.integers(-(2**7), 2**7, MILLION) * np.exp2(rng.integers(-20, 12, MILLION))
    return np.concatenate([bits, usual.astype(np.float32), ties.astype(np.float32)])


NUMBERS = million()


def wide(numbers: AnyArray) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return numbers.astype(np.float64)


def same_codes(found: AnyArray, wanted: AnyArray, name: str) -> bool:
    """Equal codes, or codes that are both NaN: its payload is nobody's."""
    both = np.isnan(decode(found, name)) & np.isnan(decode(wanted, name))
    return bool(np.all((found == wanted) | both))


@pytest.mark.parametrize("name", LIBRARY)
def test_every_code_is_the_number_that_ml_dtypes_has(name: str) -> None:
    codes = np.arange(1 << ELEMENTS[name].bits, dtype=np.uint8)
    assert np.array_equal(decode(codes, name), codes.view(LIBRARY[name]).astype(np.float64), equal_nan=True)


@pytest.mark.parametrize("name", INTEGERS)
def test_every_integer_code_is_the_number_that_the_type_has(name: str) -> None:
    codes = np.arange(1 << ELEMENTS[name].bits, dtype=np.uint8)
    wanted = codes.astype(np.uint8).view(np.int8) if name == "int8" else codes.astype(np.uint8).view(INTEGERS[name])
    assert np.array_equal(decode(codes, name), wanted.astype(np.float64))


def test_offset_integers_are_stored_plus_their_offset() -> None:
    assert np.array_equal(decode(np.arange(16), "uint4b8"), np.arange(-8.0, 8.0))
    assert np.array_equal(decode(np.arange(256), "uint8b128"), np.arange(-128.0, 128.0))


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_number_keeps_its_code(name: str) -> None:
    codes = np.arange(1 << ELEMENTS[name].bits, dtype=np.uint8)
    if name == "int8":
        codes = np.delete(codes, 128)  # -128 is not written
    for saturate in (False, True):
        numbers = decode(codes, name)
        kept = codes[np.isfinite(numbers)]
        assert np.array_equal(encode(numbers[np.isfinite(numbers)], name, saturate=saturate), kept)


@pytest.mark.parametrize("name", LIBRARY)
def test_a_million_numbers_are_converted_as_ml_dtypes_does(name: str) -> None:
    numbers = NUMBERS if ELEMENTS[name].special != "none" else NUMBERS[~np.isnan(NUMBERS)]
    with np.errstate(all="ignore"):
        wanted = numbers.astype(LIBRARY[name]).view(np.uint8)
    assert same_codes(encode(wide(numbers), name, saturate=False), wanted, name)


@pytest.mark.parametrize("name", TORCH)
def test_a_million_numbers_are_converted_as_torch_does(name: str) -> None:
    """Torch saturates e4m3fn beyond the largest number since 2.9 or so, and makes NaN of it before."""
    overflows = torch.isnan(torch.tensor(1e4).to(TORCH[name]).float()).item()
    saturates = name == "fp8_e4m3fn" and not overflows
    wanted = torch.from_numpy(NUMBERS).to(TORCH[name]).view(torch.uint8).numpy()
    assert same_codes(encode(wide(NUMBERS), name, saturate=saturates), wanted, name)


@pytest.mark.parametrize("name", LIBRARY)
def test_saturating_conversions_clip_first(name: str) -> None:
    limit, numbers = ELEMENTS[name].max_value, NUMBERS[~np.isnan(NUMBERS)]
    with np.errstate(all="ignore"):
        wanted = np.clip(numbers, -limit, limit).astype(LIBRARY[name]).view(np.uint8)
    assert np.array_equal(encode(wide(numbers), name), wanted)


@pytest.mark.parametrize("name", ["int8", "int4", "uint4", "uint4b8", "uint8b128"])
def test_integers_round_to_even_and_saturate(name: str) -> None:
    element = ELEMENTS[name]
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30, np.inf, -np.inf, np.nan])
    high, low = element.max_value, element.min_value
    wanted = [0, 2, 2, 0, max(-2, low), high, low, high, low, 0]
    assert np.array_equal(decode(encode(values, name), name), wanted)


def test_formats_of_numbers_only_make_the_largest_of_nan() -> None:
    assert decode(encode(np.array([np.nan, -np.nan]), "fp4_e2m1"), "fp4_e2m1").tolist() == [6.0, 6.0]


def test_nibbles_are_packed_as_torch_packs_its_two_in_one_format() -> None:
    codes = np.arange(32, dtype=np.uint8).reshape(2, 16) % 16
    packed = pack_nibbles(codes)
    assert packed[0, 0] == 0x10
    assert np.array_equal(unpack_nibbles(packed), codes)
    with pytest.raises(ValueError, match="odd"):
        pack_nibbles(codes[:, :3])


def test_e8m0_codes_are_the_library_ones() -> None:
    codes = np.arange(256, dtype=np.uint8)
    wanted = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    assert np.array_equal(e8m0_decode(codes), wanted, equal_nan=True)


def test_a_million_numbers_are_rounded_to_powers_of_two_as_both_libraries_do() -> None:
    numbers = np.abs(NUMBERS)
    found = e8m0_nearest(wide(numbers))
    assert np.array_equal(found, torch.from_numpy(numbers).to(torch.float8_e8m0fnu).view(torch.uint8).numpy())
    with np.errstate(all="ignore"):
        not_zero = numbers > 0  # ml_dtypes makes NaN of 0, torch the smallest power
        assert np.array_equal(found[not_zero], numbers[not_zero].astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))


@pytest.mark.parametrize(
    ("rule", "exponents"),
    [
        # amax: 4, 5.9, 6, 6.1, 7, 7.9, 8 in e2m1, whose largest power is 4 and whose largest number is 6
        ("floor", [0, 0, 0, 0, 0, 0, 1]),
        ("half_up", [0, 0, 1, 1, 1, 1, 1]),
        ("cutlass", [0, 0, 0, 0, 1, 1, 1]),
        ("ceil", [0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_the_rules_for_powers_of_two_differ_between_six_and_eight(rule: Any, exponents: list[int]) -> None:
    amax = np.array([4.0, 5.9, 6.0, 6.1, 7.0, 7.9, 8.0])
    assert (e8m0_of_amax(amax, "fp4_e2m1", rule).astype(int) - 127).tolist() == exponents
    again = e8m0_of_amax(amax * 2.0**-40, "fp4_e2m1", rule).astype(int) - 127
    assert (again + 40).tolist() == exponents


@pytest.mark.parametrize("rule", ["floor", "half_up", "cutlass", "ceil"])
def test_blocks_of_zeros_nan_and_extreme_size_have_codes(rule: Any) -> None:
    amax = np.array([0.0, np.nan, np.inf, 2.0**-140, np.finfo(np.float32).max])
    codes = e8m0_of_amax(amax, "fp8_e4m3fn", rule)
    assert codes[0] == 0
    assert codes[1] == codes[2] == 255
    assert codes[3] == 0
    assert 245 < codes[4] < 255


def test_ue8m0_is_the_next_power_of_two_by_bits() -> None:
    scale = np.abs(NUMBERS[(np.abs(NUMBERS) >= 2.0**-126) & (np.abs(NUMBERS) <= 2.0**126)])
    power = e8m0_decode(ue8m0_of_scale(scale))
    assert np.all((power >= scale) & (power < 2.0 * scale.astype(np.float64)))
    exact = np.ldexp(np.float32(1), np.arange(-127, 127)).astype(np.float32)
    assert np.array_equal(e8m0_decode(ue8m0_of_scale(exact)), exact.astype(np.float64))


def test_float_scales_hold_both_ends() -> None:
    largest, least = np.array([7.0, 3.5, 0.0]), np.array([-7.0, -8.0, 0.0])
    assert float_scale(largest, least, "uint4b8")[:2].tolist() == [1.0, 1.0]
    assert float_scale(largest, least, "int8")[0] == np.float32(7) / np.float32(127)
    assert float_scale(largest, least, "int8")[2] > 0


def test_a_token_has_a_least_scale_and_may_have_a_bound() -> None:
    limit = np.float32(448)
    assert per_token_scale(np.array([0.0]))[0] == np.float32(1) / (limit * np.float32(512))
    assert per_token_scale(np.array([896.0]))[0] == np.float32(2)
    assert per_token_scale(np.array([896.0]), upper_bound=448.0)[0] == np.float32(1)
