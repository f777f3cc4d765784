"""Folders and kernels with names of any kind, in every file of the report; and two runs at once in one folder."""

from __future__ import annotations

import os
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.cli.command import QUICK, moecheck, start

KERNEL = """\
def shuffle(x, row_map):
    return x[row_map - 1]
"""
NAMES = [
    pytest.param("ünï 日本 ‮", id="not ASCII"),
    pytest.param("a 'b' \"c\" $(d) `e` <script>alert(1)</script>&amp;|*", id="of a shell, HTML and Markdown"),
    pytest.param("a\nb\x1b[31m", id="a new line and an escape sequence"),
    pytest.param(os.fsdecode(b"a\xff\xfe"), id="no UTF-8"),
    pytest.param("a:b", id="a colon"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kernel_is_reported_and_replayed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name.replace("/", "∕")
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "kernel.py").write_text(KERNEL, encoding="utf-8")
    spec = f"{folder}/kernel.py:shuffle"
    words = (*QUICK, "--op", "shuffle_rows", "--backend", "numpy")
    result = moecheck("kernels", *words, "--kernel", spec, out=folder / "out")
    assert result.code == 1, result.err + result.out
    assert "\x1b" not in result.out
    assert "<script>alert" not in (result.folder / "report.html").read_text(encoding="utf-8")
    ET.parse(result.folder / "junit.xml")

    (kernel,) = result.summary()["kernels"]
    again = shlex.split(kernel["reproduce"])
    assert again[:2] == ["moecheck", "replay"]
    assert moecheck(*again[1:]).code == 1


def test_two_runs_in_one_folder_at_once(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL, encoding="utf-8")
    words = ("kernels", *QUICK, "--op", "shuffle_rows", "--backend", "numpy", "--kernel", "kernel.py:shuffle")
    both = [start(*words, "--jobs", "1", "--out", "out", cwd=tmp_path) for _ in range(2)]
    assert [(run.communicate(timeout=600), run.returncode)[1] for run in both] == [1, 1]
    latest, *folders = sorted((tmp_path / "out").iterdir(), key=lambda path: not path.is_symlink())
    assert latest.name == "latest"
    assert len(folders) == 2
    assert latest.resolve() in folders
    first, second = ((folder / "findings.jsonl").read_text(encoding="utf-8").count("\n") for folder in folders)
    assert first == second > 0
