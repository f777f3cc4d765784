"""Pictures of errors: coarsening keeps the worst, NaN is an error, and nothing is drawn from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moecheck.errors import HarnessError, UsageError
from moecheck.report import ErrorPicture, picture_of
from moecheck.report.picture import MAX_CELLS, Z_EDGES, coarsen
from moecheck.report.pictures_file import read_picture, write_pictures
from moecheck.report.plots import heat_map_svg, histogram_svg, z_histogram_svg
from moecheck.report.strict_json import dumps
from tests.report import sample


def test_one_wrong_element_is_seen_at_its_place_after_coarsening() -> None:
    ref = np.ones((1000, 999))
    out = ref.copy()
    out[700, 321] = 1.5

    picture = picture_of(out, ref, 0.1, kernel="k", case="c")

    assert picture.excess.shape == MAX_CELLS
    assert np.argwhere(picture.excess).tolist() == [[700 * 96 // 1000, 321 * 128 // 999]]
    (worst,) = picture.worst
    assert (worst.row, worst.column, worst.got, worst.expected) == (700, 321, 1.5, 1.0)
    assert (worst.error, worst.allowed, picture.wrong, picture.shape) == (0.5, 0.1, 1, (1000, 999))
    assert picture.histogram.sum() == ref.size
    assert coarsen(picture.excess, 1, 1) == pytest.approx(5.0)


def test_an_error_equal_to_the_bound_is_allowed() -> None:
    picture = picture_of(np.array([[1.5, 1.0]]), np.ones((1, 2)), 0.5, kernel="k", case="c")

    assert picture.wrong == 0
    assert picture.histogram[:17].sum() == 2


@pytest.mark.parametrize(
    ("out", "ref", "expected"),
    [
        pytest.param(np.nan, 1.0, np.inf, id="NaN instead of a number"),
        pytest.param(1.0, np.nan, np.inf, id="a number instead of NaN"),
        pytest.param(np.inf, -np.inf, np.inf, id="infinity of the wrong sign"),
        pytest.param(np.nan, np.nan, 0.0, id="both NaN"),
        pytest.param(np.inf, np.inf, 0.0, id="both infinite"),
    ],
)
def test_error_of_values_that_are_not_finite(out: float, ref: float, expected: float) -> None:
    picture = picture_of(np.array([[out]]), np.array([[ref]]), 1.0, kernel="k", case="c")

    assert picture.excess[0, 0] == expected
    assert picture.wrong == (expected > 0)


def test_an_error_where_none_is_allowed_is_infinitely_wrong() -> None:
    picture = picture_of(np.array([[2.0, 1.0]]), np.ones((1, 2)), 0.0, kernel="k", case="c")

    assert picture.excess.tolist() == [[np.inf, 0.0]]
    assert picture.wrong == 1


@pytest.mark.parametrize(("shape", "rows"), [((), (1, 1)), ((5,), (5, 1)), ((2, 3, 4), (2, 12)), ((0, 4), (1, 1))])
def test_any_number_of_axes_becomes_rows_and_columns(shape: tuple[int, ...], rows: tuple[int, int]) -> None:
    picture = picture_of(np.zeros(shape), np.zeros(shape), 1.0, kernel="k", case="c")

    assert picture.shape == rows
    assert picture.worst == ()


def test_arrays_of_different_shapes_have_no_picture() -> None:
    with pytest.raises(HarnessError, match="one shape"):
        picture_of(np.zeros(3), np.zeros(4), 1.0, kernel="k", case="c")


def test_pictures_are_bare_svg_without_addresses() -> None:
    picture = picture_of(np.ones((4, 4)), np.zeros((4, 4)), 0.5, kernel="k", case="c", sigma=np.ones((4, 4)))

    for svg in (heat_map_svg(picture), histogram_svg(picture), z_histogram_svg(picture)):
        assert svg is not None
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")
        assert "://" not in svg
        assert "#010203" not in svg
    assert dumps(picture.to_json())


def test_z_counts_each_element_once_with_its_sign() -> None:
    """Steps of 1/4 from -12: z = 0 lies in [0, 1/4), z = -1 in [-1, -3/4), beyond and NaN in the outer bins."""
    out = np.array([0.0, -2.0, 30.0, -30.0, np.nan, 5.0])
    ref = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 5.0])

    z = picture_of(out, ref, 8.0, kernel="k", case="c", sigma=np.array([2.0, 2.0, 2.0, 2.0, 2.0, 0.0])).z

    assert z is not None
    assert z.sum() == 6
    assert {index: int(z[index]) for index in np.flatnonzero(z)} == {
        0: 1,
        1 + int(np.flatnonzero(Z_EDGES == -1.0)[0]): 1,
        1 + int(np.flatnonzero(Z_EDGES == 0.0)[0]): 2,
        len(Z_EDGES): 2,
    }


def test_without_sigma_there_is_no_histogram_of_z() -> None:
    picture = picture_of(np.ones((4, 4)), np.zeros((4, 4)), 0.5, kernel="k", case="c")

    assert picture.z is None
    assert z_histogram_svg(picture) is None


@pytest.mark.parametrize("picture", sample.pictures(), ids=["wrong rows", "NaN", "honest"])
def test_a_picture_comes_back_from_disk(picture: ErrorPicture, tmp_path: Path) -> None:
    write_pictures(tmp_path, [picture])

    found = read_picture(tmp_path, picture.kernel)

    assert found is not None
    assert np.array_equal(np.isinf(found.excess), np.isinf(picture.excess))
    finite = np.isfinite(picture.excess)
    assert np.array_equal(
        [f"{value:.3e}" for value in found.excess[finite]], [f"{value:.3e}" for value in picture.excess[finite]]
    )
    assert repr(found.worst) == repr(picture.worst)
    assert (found.histogram.tolist(), found.shape, found.wrong) == (
        picture.histogram.tolist(),
        picture.shape,
        picture.wrong,
    )
    assert read_picture(tmp_path, "another") is None


@pytest.mark.parametrize(
    "change",
    [
        {"excess": [[1.0], [1.0, 2.0]]},
        {"excess": []},
        {"excess": [["<b>"]]},
        {"shape": [1]},
        {"histogram": [1, 2]},
        {"histogram": [-1] * 34},
        {"worst": [{}]},
        {"z": "12"},
        {"axes": None},
    ],
)
def test_a_file_that_is_no_picture_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    write_pictures(tmp_path, [sample.pictures()[0]])
    (path,) = (tmp_path / "pictures").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), encoding="utf-8")

    with pytest.raises(UsageError, match="cannot be read as a picture"):
        read_picture(tmp_path, sample.ROWS)
