"""shuffle_rows: copies, repeats and the unspecified rows."""

from __future__ import annotations

import numpy as np

from moecheck.formats import store
from moecheck.references.shuffle_rows import shuffle_rows


def test_rows_are_copied_repeated_and_left_out() -> None:
    x = store(np.array([[1.0, -0.0], [np.nan, 2.0], [3.0, np.inf]]), "bf16")
    out = shuffle_rows(x=x, row_map=np.array([2, 0, 2, -1], dtype=np.int32))
    np.testing.assert_array_equal(out, [[3.0, np.inf], [1.0, -0.0], [3.0, np.inf], [np.nan, np.nan]])
    assert np.signbit(out[1, 1])


def test_a_permutation_and_its_inverse_are_the_identity() -> None:
    rng = np.random.default_rng(0)
    x, order = rng.standard_normal((12, 3)), rng.permutation(12)
    np.testing.assert_array_equal(shuffle_rows(x=shuffle_rows(x=x, row_map=order), row_map=np.argsort(order)), x)
