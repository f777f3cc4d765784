"""Drawn bits: pinned for ever, independent of chunks, distinct for distinct keys."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from moecheck import draw
from moecheck.formats import to_float64
from tests.bounds import TABLE_VARIANCE


def digest(array: object) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_raw_words_are_those_of_the_bit_generator() -> None:
    words = draw.raw(draw.philox("case", "tensor"), 1000)
    again = draw.philox("case", "tensor").bit_generator

    assert isinstance(again, np.random.Philox)
    np.testing.assert_array_equal(words, again.random_raw(1000))


def test_raw_words_never_change() -> None:
    assert draw.raw(draw.philox("golden", 1), 4).tolist() == [
        6688689521271655791,
        10836259687623349508,
        14951804860733003780,
        7903741423874377076,
    ]


def test_the_quantile_table_never_changes() -> None:
    assert digest(draw.normal_quantiles()) == "b9f61aca52ea0f951eed99a580b7ab305c9e41faba2978a95d15ad57c062bc5f"


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("fp32", "794dbc94f0af6948b8f1db92288ec92bf1ed846e88ad7deda2b1d3c347fd980a"),
        ("fp16", "23e19f880592dab095e063673b05aa8a7ebc34c60426ecb07853f10cd1508f9d"),
        ("bf16", "19d3d8982e44999013fbe4109b3b46d815df9e3fe2889a63609991c5e1015bf2"),
    ],
)
def test_normals_never_change(dtype: str, wanted: str) -> None:
    assert digest(draw.normals(("golden", dtype), (300, 257), scale=0.5, dtype=dtype)) == wanted


def test_integers_orders_and_uniforms_never_change() -> None:
    assert draw.integers(("golden",), (6,), below=10).tolist() == [9, 4, 7, 4, 2, 4]
    assert draw.orders(("golden",), 2, 5).tolist() == [[2, 0, 3, 1, 4], [1, 4, 2, 3, 0]]
    assert draw.uniforms(("golden",), (2,)).tolist() == [0.2606496362714097, 0.9639062179485336]


@pytest.mark.parametrize("size", [1, 3, 65535, 65536, 65537, 3 * 65536 + 5])
def test_a_longer_draw_begins_with_the_shorter_one(size: int) -> None:
    table = np.arange(draw.TABLE_SIZE)
    whole = draw.look_up(draw.philox("chunks"), table, (4 * 65536,))

    np.testing.assert_array_equal(draw.look_up(draw.philox("chunks"), table, (size,)), whole[:size])


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.arange(draw.TABLE_SIZE)
    wanted = draw.look_up(draw.philox("chunks"), table, (1000,))
    monkeypatch.setattr(draw, "_CHUNK", 64)

    np.testing.assert_array_equal(draw.look_up(draw.philox("chunks"), table, (1000,)), wanted)


def test_each_entry_comes_from_twelve_bits_of_its_own() -> None:
    words = draw.raw(draw.philox("bits"), 5).view("<u2")
    entries = draw.look_up(draw.philox("bits"), np.arange(draw.TABLE_SIZE), (20,))

    assert entries.tolist() == [int(word) >> 4 for word in words]


def test_every_entry_of_the_table_is_drawn() -> None:
    entries = draw.look_up(draw.philox("all"), np.arange(draw.TABLE_SIZE), (draw.TABLE_SIZE * 32,))

    assert np.unique(entries).tolist() == list(range(draw.TABLE_SIZE))


def test_the_table_is_symmetric_with_variance_one() -> None:
    table = draw.normal_quantiles()

    np.testing.assert_array_equal(table, -table[::-1])
    assert (np.diff(table) > 0).all()
    assert np.abs(np.mean(table**2) - 1) <= TABLE_VARIANCE


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_both_tables_hold_the_same_numbers(dtype: str) -> None:
    np.testing.assert_array_equal(to_float64(draw.normal_table(0.3, dtype)), draw.normal_table_float64(0.3, dtype))


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a", "b"), ("a", "c")), (("a", 1), ("a", 2)), (("seed 1", "w13/0"), ("seed 1", "w13/1"))],
)
def test_another_key_gives_other_bits(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    words = [set(draw.raw(draw.philox(*key), 100).tolist()) for key in (one, other)]

    assert not words[0] & words[1]


def test_orders_are_permutations() -> None:
    rows = draw.orders(("orders",), 50, 33)

    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(33), (50, 1)))
    assert len({tuple(row) for row in rows.tolist()}) == 50


def test_uniforms_stay_inside_the_open_interval() -> None:
    values = draw.uniforms(("uniforms",), (10_000,))

    assert ((values > 0) & (values < 1)).all()
    assert draw.uniforms(("uniforms",), (0, 3)).shape == (0, 3)
