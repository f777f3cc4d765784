"""Coordinates of an error: rows, columns, experts and tile edges."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.diagnosis.evidence import Evidence
from moecheck.diagnosis.location import Location, edge_of, locate
from moecheck.formats import Float64
from moecheck.mutants.call import Prediction

T, H = 40, 320
Indices = list[int] | slice


def evidence(out: Float64) -> Evidence:
    zeros = np.zeros((T, H))
    reference = Prediction(zeros, np.ones((T, H)))
    return Evidence(out=out, reference=reference, rounded=zeros, judged=np.ones((T, H), dtype=np.bool_))


def wrong_at(rows: Indices, columns: Indices, size: float = 50.0) -> Float64:
    out = np.random.default_rng(0).normal(size=(T, H))
    out[np.ix_(np.arange(T)[rows], np.arange(H)[columns])] += size
    return out


@pytest.mark.parametrize(
    ("rows", "columns", "expected", "text"),
    [
        pytest.param([17], slice(None), ((17,), ()), "in token 17.", id="one row"),
        pytest.param([3, 30], slice(None), ((3, 30), ()), "in tokens 3, 30.", id="two rows"),
        pytest.param(
            slice(32, 40),
            slice(None),
            (tuple(range(32, 40)), ()),
            "to 39 (the tail beyond the last full",
            id="last rows",
        ),
        pytest.param(slice(None), [5], ((), (5,)), "in column 5.", id="one column"),
        pytest.param(
            slice(None), slice(256, 320), ((), tuple(range(256, 320))), "(the tail beyond the last full", id="tail"
        ),
        pytest.param([7], [100], ((7,), (100,)), "in token 7, column 100.", id="one element"),
        pytest.param(
            slice(16, 32),
            slice(64, 128),
            (tuple(range(16, 32)), tuple(range(64, 128))),
            "tokens 16 to 31 (a whole tile of 16), columns 64 to 127 (a whole tile of 64).",
            id="a tile",
        ),
    ],
)
def test_coordinates(rows: Indices, columns: Indices, expected: tuple[object, object], text: str) -> None:
    found = locate(evidence(wrong_at(rows, columns)), None, "token")
    assert (found.rows, found.columns) == expected
    assert text in found.words()
    assert found.share > 0.95


def test_an_error_everywhere_has_no_place() -> None:
    found = locate(evidence(wrong_at(slice(None), slice(None))), None, "row")
    assert found == Location(row="row", share=1.0)
    assert found.words() == "The error is spread over all rows and columns."


def test_the_tail_of_an_error_that_is_everywhere_is_no_place() -> None:
    """All elements off by one standard deviation: a few of them stand out, and are not where the error is."""
    out = np.random.default_rng(0).normal(scale=1.5, size=(T, H))
    out[3, 5] = 7.0
    assert locate(evidence(out), None, "token") == Location()
    assert locate(evidence(out / 1.5), None, "token") == Location()


def test_many_scattered_columns_are_no_place() -> None:
    columns = sorted(np.random.default_rng(1).permutation(H)[:60].tolist())
    assert locate(evidence(wrong_at(slice(None), columns)), None, "token").columns == ()


def test_rounding_alone_has_no_place() -> None:
    assert locate(evidence(np.zeros((T, H))), None, "token") == Location()


def test_elements_that_do_not_count_are_no_place() -> None:
    given = evidence(wrong_at([17], slice(None)))
    given.judged[17] = False
    assert 17 not in locate(given, None, "token").rows


def test_a_row_that_is_not_finite_is_a_place() -> None:
    out = np.random.default_rng(0).normal(size=(T, H))
    out[11] = np.nan
    assert locate(evidence(out), None, "token").rows == (11,)


def test_the_expert_that_all_wrong_rows_share() -> None:
    experts = np.stack([np.arange(T) % 8, 8 + np.arange(T) % 5], axis=1)
    rows = np.flatnonzero(experts[:, 0] == 3).tolist()
    found = locate(evidence(wrong_at(rows, slice(None))), experts, "token")

    assert found.experts == (3,)
    assert found.words().endswith("; these tokens all belong to expert 3.")
    assert locate(evidence(wrong_at([1, 2], slice(None))), experts, "token").experts == ()
    everybody = np.zeros((T, 1), dtype=np.int64)  # an expert that the right rows have as well says nothing
    assert locate(evidence(wrong_at(rows, slice(None))), everybody, "token").experts == ()


@pytest.mark.parametrize(
    ("first", "end", "size", "text"),
    [
        (256, 320, 320, "the tail beyond the last full tile of 256"),
        (128, 256, 256, "all from a multiple of 128 on"),
        (88, 90, 90, "the tail beyond the last full tile of 8"),
        (0, 64, 256, "a whole tile of 64"),
        (64, 192, 256, "2 whole tiles of 64"),
        (87, 90, 90, "the last ones"),
        (3, 7, 90, ""),
        (0, 90, 90, ""),
    ],
)
def test_edges(first: int, end: int, size: int, text: str) -> None:
    assert edge_of(tuple(range(first, end)), size) == text


def test_scattered_columns_have_no_edge() -> None:
    assert edge_of((64, 128, 192), 256) == ""
    assert edge_of((), 256) == ""
