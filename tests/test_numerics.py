"""The rounding points that a kernel may declare."""

from __future__ import annotations

import pytest

from moecheck.errors import SpecError
from moecheck.numerics import PROFILES, Numerics


@pytest.mark.parametrize("profile", PROFILES)
def test_a_known_accumulator_is_taken(profile: str) -> None:
    assert Numerics(accumulate=profile).accumulate == profile


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"accumulate": "nonsense"}, r"accumulate='nonsense' must be one of fp32-rn", id="accumulator"),
        pytest.param({"combine_order": "random"}, r"combine_order='random' must be tree, slot or expert", id="order"),
        pytest.param({"act": "fp12"}, r"act='fp12' must be 'input' or one of fp32", id="format"),
    ],
)
def test_an_unknown_name_is_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Numerics(**changes)  # type: ignore[arg-type]  # wrong on purpose
