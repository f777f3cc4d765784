"""Drift: found where it was planted, not where nothing drifts, and only in what is watched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moecheck.checks.finding import Verdict
from moecheck.history import History
from moecheck.history.drift import FALSE_DISCOVERIES, LEAST, RECENT, Drift, drifts, frame_of
from tests.history.sample import night_of, result, run

pytest.importorskip("scipy", reason="needs the package scipy")
NIGHTS = 45


def history_of(path: Path, values: dict[str, np.ndarray], metric: str, part: str = "kernels") -> pd.DataFrame:
    """Subject -> value of one metric by night, as a history tells it."""
    with History.open(path / "h.sqlite") as history:
        for night in range(max(map(len, values.values()))):
            results = [
                result(subject, metrics={metric: float(series[night])})
                for subject, series in values.items()
                if night < len(series)
            ]
            history.add(night_of(run(*results, night=night, part=part, label=part), night=night))
        return history.metrics()


def noise(subject: int, nights: int = NIGHTS) -> np.ndarray:
    return np.exp(0.1 * np.random.default_rng([3, subject]).standard_normal(nights))


def drifted(found: list[Drift]) -> set[str]:
    return {one.subject for one in found if one.drifted}


@pytest.mark.parametrize(
    ("metric", "part", "factor"),
    [
        ("max_diff", "kernels", 2.0),
        ("rms_z_median", "kernels", 2.0),
        ("slope_error", "kernels", 2.0),
        ("slope_error", "kernels", 0.5),
        ("ratio", "bench", 0.5),
        ("teacher-forced divergence", "e2e", 2.0),
        ("identical texts", "e2e", 0.5),
    ],
)
def test_a_step_is_found_and_named(metric: str, part: str, factor: float, tmp_path: Path) -> None:
    values = {f"kernel-{i}": noise(i) for i in range(8)}
    values["kernel-3"][-RECENT:] *= factor
    found = drifts(history_of(tmp_path, values, metric, part))
    assert drifted(found) == {"kernel-3"}
    assert found[0].subject == "kernel-3"
    assert metric in found[0].words


@pytest.mark.parametrize(
    ("metric", "part", "factor"),
    [
        ("max_diff", "kernels", 0.5),
        ("ratio", "bench", 2.0),
        ("identical texts", "e2e", 2.0),
        ("seconds", "kernels", 2.0),
    ],
    ids=["smaller errors", "faster", "more alike", "not watched"],
)
def test_good_news_is_no_drift(metric: str, part: str, factor: float, tmp_path: Path) -> None:
    values = {"mine": noise(0)}
    values["mine"][-RECENT:] *= factor
    assert not drifted(drifts(history_of(tmp_path, values, metric, part)))


def test_a_trend_is_found(tmp_path: Path) -> None:
    values = {f"kernel-{i}": noise(i) for i in range(8)}
    values["kernel-3"] *= np.linspace(1, 2, NIGHTS)
    found = drifts(history_of(tmp_path, values, "max_diff"))
    assert drifted(found) == {"kernel-3"}
    assert found[0].p_trend < found[0].p_step


def test_nothing_drifts_in_noise(tmp_path: Path) -> None:
    found = drifts(history_of(tmp_path, {f"kernel-{i}": noise(i) for i in range(30)}, "max_diff"))
    assert len(found) == 30
    assert not drifted(found)
    assert min(one.adjusted for one in found) > FALSE_DISCOVERIES


def test_what_is_significant_and_small_is_no_drift(tmp_path: Path) -> None:
    values = 1 + 1e-6 * np.arange(NIGHTS)  # rises every night, by a millionth
    found = drifts(history_of(tmp_path, {"mine": values}, "max_diff"))
    assert found[0].adjusted < FALSE_DISCOVERIES
    assert not drifted(found)


@pytest.mark.parametrize(("last", "changed"), [(1.0, False), (1.5, True), (0.5, False), (1.01, False)])
def test_a_number_that_never_changed_and_does(last: float, changed: bool, tmp_path: Path) -> None:
    values = np.ones(NIGHTS)
    values[-1] = last
    found = drifts(history_of(tmp_path, {"mine": values}, "max_diff"))
    assert [one.changed for one in found] == [changed]
    assert not drifted(found)


def test_short_series_are_not_tested(tmp_path: Path) -> None:
    assert not drifts(history_of(tmp_path, {"mine": noise(0, LEAST + RECENT - 1)}, "max_diff"))


def test_nights_on_which_it_failed_and_other_machines_do_not_count(tmp_path: Path) -> None:
    table = history_of(tmp_path, {"mine": noise(0), "other": noise(1)}, "max_diff")
    bad = table["night"] >= "night-040"
    table.loc[bad & (table["subject"] == "mine"), "verdict"] = Verdict.FAIL.value
    table.loc[bad & (table["subject"] == "mine"), "value"] = 1e9
    table.loc[bad & (table["subject"] == "other"), "machine"] = "another processor"
    table.loc[bad & (table["subject"] == "other"), "value"] = 1e9
    assert not drifted(drifts(table))


def test_two_nights_of_one_day_count_once(tmp_path: Path) -> None:
    table = history_of(tmp_path, {"mine": noise(0)}, "max_diff")
    again = table.assign(night=table["night"] + "-again", run=table["run"] + "-again")
    assert drifts(pd.concat([table, again]))[0].nights == NIGHTS


def test_only_series_that_end_with_the_night(tmp_path: Path) -> None:
    table = history_of(tmp_path, {"mine": noise(0), "gone": noise(1, NIGHTS - 1)}, "max_diff")
    assert {one.subject for one in drifts(table, night=f"night-{NIGHTS - 1:03}")} == {"mine"}
    assert set(frame_of(drifts(table))["subject"]) == {"mine", "gone"}
