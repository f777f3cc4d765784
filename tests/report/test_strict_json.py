"""JSON that every parser takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moecheck.checks.finding import Verdict
from moecheck.report.strict_json import dumps, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), '"NaN"'),
        (np.float32("inf"), '"Infinity"'),
        (-np.inf, '"-Infinity"'),
        (np.int64(3), "3"),
        (np.array([1.5, np.nan]), '[1.5, "NaN"]'),
        (Verdict.PASS, '"pass"'),
        ({1: (None, True)}, '{"1": [null, true]}'),
        (Path("a"), '"a"'),
    ],
)
def test_values_become_plain_json(value: object, text: str) -> None:
    assert dumps(value) == text
    json.loads(text)


@pytest.mark.parametrize("value", [1, 1.5, "NaN", "Infinity", "-Infinity"])
def test_numbers_come_back(value: object) -> None:
    assert isinstance(number(value), float)


@pytest.mark.parametrize("value", [None, [1], {}])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="expected a number"):
        number(value)
