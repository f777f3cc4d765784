"""`moecheck mutants` and `moecheck list mutants`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command import moecheck


def test_one_mutant_of_one_op(tmp_path: Path) -> None:
    result = moecheck("mutants", "--mutant", "k-1", "--op", "unpermute", "--seeds", "2", "--out", str(tmp_path))
    assert result.code == 0, result.out + result.err
    assert "1 of 1 mutants killed" in result.out
    (folder,) = tmp_path.iterdir()
    score = json.loads((folder / "mutants.json").read_text())
    (one,) = score["mutants"]
    assert (one["id"], one["p_kill"], one["caught"]) == ("k-1", 1.0, {"unpermute": 2})
    assert score["passed"] is True
    assert "`k-1`" in (folder / "mutants.md").read_text()


def test_an_unknown_mutant_is_bad_usage(tmp_path: Path) -> None:
    result = moecheck("mutants", "--mutant", "drop_q", "--out", str(tmp_path))
    assert result.code == 2
    assert "drop_r" in result.err
    assert not list(tmp_path.iterdir())


def test_mutants_are_listed() -> None:
    result = moecheck("list", "mutants")
    assert result.code == 0
    assert "drop_r" in result.out
    assert "checker: abs dropped" in result.out
