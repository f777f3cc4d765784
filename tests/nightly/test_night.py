"""Whole nights of a small kernel: passed, planted, known, cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moecheck.history import History
from tests.cli.command import Result, moecheck

KERNEL = """
import moecheck

@moecheck.kernel("shuffle_rows", backend="numpy", dtypes=("fp32",))
def rows(x, row_map):
    return x[row_map]
"""
BUG = "    return x[row_map] * 1.5"
CONFIG = """
name = "test"
seed = 3
xfail = "xfail.toml"
[kernels]
kernel = ["{folder}/good.py:rows", "{folder}/mine.py:rows"]
profile = "quick"
examples = 0
jobs = 1
[bench]
needs = "no_such_package"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("good.py", "mine.py"):
        (tmp_path / name).write_text(KERNEL, encoding="utf-8")
    (tmp_path / "xfail.toml").touch()
    path = tmp_path / "nightly.toml"
    path.write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    return path


def night(config: Path, *words: str | Path) -> tuple[Result, dict[str, object], list[tuple[str, str]]]:
    """One night: what a user sees, nightly.json, and (status, subject) of all that is notable."""
    result = moecheck("nightly", *(words or (config,)))
    data = json.loads((config.parent / "reports" / "latest" / "nightly.json").read_text(encoding="utf-8"))
    return result, data, [(one["status"], Path(one["subject"]).name) for one in data["statuses"]]


def test_nights(config: Path) -> None:
    folder = config.parent
    first, data, said = night(config)
    assert (first.code, said) == (0, [("skipped", "bench")]), first.out
    assert "needs the package no_such_package" in first.out
    assert data["compared_with"] is None

    again, data, said = night(config)
    assert (again.code, said) == (0, [("skipped", "bench")]), again.out
    assert str(data["compared_with"]).startswith("nightly-")

    (folder / "mine.py").write_text(KERNEL.replace("    return x[row_map]", BUG), encoding="utf-8")
    planted, data, said = night(config)
    assert (planted.code, said) == (1, [("skipped", "bench"), ("regression", "mine.py:rows")]), planted.out
    assert planted.out.splitlines()[-2].startswith("✘ 1 regression: ")
    assert "moecheck replay" in planted.out
    summary = (folder / "reports" / "latest" / "summary.md").read_text(encoding="utf-8")
    assert "mine.py:rows" in summary
    assert "good.py" not in summary.partition("## Parts")[0]

    entry = '[[xfail]]\nkernel = "*mine.py:rows"\nissue = "https://example.org/1"\nexpires = {}\n'
    (folder / "xfail.toml").write_text(entry.format(str(data["started"])[:10]), encoding="utf-8")
    known, _, said = night(config)
    assert (known.code, said) == (0, [("skipped", "bench"), ("known", "mine.py:rows")]), known.out

    # A night that was cut off after its kernels, and before it said anything.
    last = (folder / "reports" / "latest").resolve()
    (last / "nightly.json").unlink()
    (last / "parts" / "bench.json").unlink()
    before = (last / "parts" / "kernels.json").read_text(encoding="utf-8")
    resumed, _, said = night(config, "--resume", last)
    assert (resumed.code, said) == (0, [("skipped", "bench"), ("known", "mine.py:rows")]), resumed.out
    assert (last / "parts" / "kernels.json").read_text(encoding="utf-8") == before

    with History.open(folder / "reports" / "history.sqlite", read_only=True) as history:
        assert history.nights()["exit_code"].tolist() == [0, 0, 1, 0]
        assert len(history.results()) == 8
    shown = moecheck("history", "results", "--subject", "*mine.py*", "--format", "csv", "--history", history.path)
    assert (shown.code, shown.out.count("\n")) == (0, 5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give a nightly.toml"),
        (("a.toml", "--resume", "b"), "Give a nightly.toml"),
        (("none.toml",), "Cannot read none.toml"),
        (("--resume", "."), "is no folder of a night"),
    ],
)
def test_bad_words(words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = moecheck("nightly", *words)
    assert (result.code, "Traceback" in result.err) == (2, False)
    assert said in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("result",), "Did you mean 'results'"),
        (("nights", "--format", "xml"), "Unknown format"),
        (("nights", "--metric", "max_diff"), "--metric means nothing to nights"),
        (("nights", "folder"), "only `moecheck history add` takes folders"),
        (("add",), "takes report folders"),
        (("add", "."), "holds no finished run"),
        (("nights",), "does not exist"),
    ],
)
def test_bad_questions(words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = moecheck("history", *words)
    assert (result.code, "Traceback" in result.err) == (2, False)
    assert said in result.err
