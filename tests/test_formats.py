"""Rounding, stores and ulps against ml_dtypes, NumPy and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from moecheck.formats import FORMATS, AnyArray, format_of, round_to, store, to_float64, ulp

BF16 = np.dtype(ml_dtypes.bfloat16)


def all_codes(dtype: np.dtype[np.generic]) -> AnyArray:
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


def million() -> AnyArray:
    """fp32 numbers of all exponents, with every bf16 tie and its neighbours among them."""
    bits = np.random.Philox(7).random_raw(1 << 19).view(np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16) + np.uint32(0x8000)
    return np.concatenate([bits, ties, ties - 1, ties + 1]).view(np.float32)


def neighbours(name: str) -> list[Fraction]:
    """Finite non-negative numbers of a 16 bit format, ascending."""
    codes = to_float64(all_codes(FORMATS[name].storage))
    return sorted({Fraction(v) for v in codes[np.isfinite(codes)].tolist() if v >= 0})


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_every_code_survives_a_round_trip(name: str) -> None:
    codes = all_codes(FORMATS[name].storage)
    values = to_float64(codes)
    numbers = ~np.isnan(values)

    np.testing.assert_array_equal(round_to(values, name), values)
    assert store(values, name)[numbers].tobytes() == codes[numbers].tobytes()  # with the sign of zero
    assert np.isnan(round_to(values[~numbers], name)).all()
    assert np.isnan(to_float64(store(values[~numbers], name))).all()


def test_a_million_fp32_values_round_to_bf16_as_ml_dtypes_does() -> None:
    values = million()
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = values.astype(BF16)
    got = store(to_float64(values), "bf16")
    numbers = ~np.isnan(values)

    assert np.count_nonzero(numbers) > 1_000_000
    np.testing.assert_array_equal(got.view(np.uint16)[numbers], wanted.view(np.uint16)[numbers])
    assert np.isnan(got[~numbers].astype(np.float32)).all()


@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_float64_values_round_as_numpy_does(name: str) -> None:
    bits = np.random.Philox(8).random_raw(300_000)
    scale = {"fp16": 18, "fp32": 140}[name]
    values = np.ldexp(
        (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53, (bits % (2 * scale)).astype(np.int32) - scale
    )
    values = np.concatenate([values, -values, [0.0, -0.0, np.inf, -np.inf]])
    with np.errstate(over="ignore"):
        wanted = values.astype(FORMATS[name].storage)

    assert store(values, name).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_rounding_is_to_the_nearest_number_and_to_even_on_ties(name: str) -> None:
    codes = neighbours(name)
    for i in range(0, len(codes) - 1, 37):
        low, high = codes[i], codes[i + 1]
        middle, hair = (low + high) / 2, (high - low) / 2**30
        even = low if i % 2 == 0 else high
        for exact, wanted in ((middle, even), (middle - hair, low), (middle + hair, high)):
            assert Fraction(float(exact)) == exact  # float64 holds it, so that nothing rounds before
            assert Fraction(float(round_to(np.array(float(exact)), name))) == wanted
            assert Fraction(float(round_to(np.array(-float(exact)), name))) == -wanted


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_one_rounding_where_two_would_err(name: str) -> None:
    """1 + ulp/2 + 2^-40 lies above a tie; through fp32 it becomes the tie, which goes to even: 1."""
    unit = Fraction(2) ** (1 - FORMATS[name].precision)
    exact = 1 + unit / 2 + Fraction(1, 2**40)
    value = np.array(float(exact))
    twice = round_to(round_to(value, "fp32"), name)

    assert Fraction(float(value)) == exact
    assert Fraction(float(round_to(value, name))) == 1 + unit
    assert Fraction(float(twice)) == 1


@pytest.mark.parametrize("name", list(FORMATS))
def test_overflow_begins_half_an_ulp_beyond_the_largest_number(name: str) -> None:
    largest = FORMATS[name].max_value
    edge = largest + float(ulp(np.array(largest), name)) / 2

    assert round_to(np.array([np.nextafter(edge, 0), edge, -edge]), name).tolist() == [largest, np.inf, -np.inf]
    assert np.isinf(to_float64(store(np.array([edge]), name))).all()


@pytest.mark.parametrize("name", list(FORMATS))
def test_ulp_is_the_distance_to_the_next_number(name: str) -> None:
    fmt = FORMATS[name]
    values = np.array([1.0, -1.5, 1.999, 3.0, fmt.max_value, 2.0**fmt.min_exponent, 2.0 ** (fmt.min_exponent - 1), 0.0])
    stored = np.abs(to_float64(store(values, name))[:4])
    above = np.nextafter(store(stored, name), FORMATS[name].storage.type(np.inf))
    tiny = 2.0 ** (fmt.min_exponent - fmt.precision + 1)

    np.testing.assert_array_equal(ulp(stored, name), to_float64(above) - stored)
    assert ulp(values, name)[5:].tolist() == [tiny, tiny, tiny]
    assert ulp(values, name)[4] == fmt.max_value - to_float64(
        np.nextafter(store(values[4], name), 0 * store(values[0], name))
    )


def test_subnormals_round_on_their_own_grid() -> None:
    least = 2.0**-24  # of fp16
    values = np.array([0.5, 0.5 + 2.0**-20, 1.5, 2.5, -0.25]) * least

    assert (round_to(values, "fp16") / least).tolist() == [0.0, 1.0, 2.0, 2.0, -0.0]
    assert np.signbit(round_to(values, "fp16")[-1])


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_storage_dtype_names_its_format(name: str) -> None:
    assert format_of(FORMATS[name].storage) == name


def test_other_dtypes_have_no_format() -> None:
    with pytest.raises(KeyError, match="float64"):
        format_of(np.float64)
