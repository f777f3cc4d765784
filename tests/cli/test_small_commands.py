"""list, doctor, new-kernel, help and version."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecheck.cli import cli
from moecheck.kernel import BACKENDS
from moecheck.ops import OPS
from tests.cli.command import QUICK, moecheck


@pytest.mark.parametrize(
    ("what", "word"), [("ops", "fused_experts"), ("models", "mixtral-8x7b"), ("cases", "plain-bf16")]
)
def test_list(what: str, word: str) -> None:
    result = moecheck("list", what)
    assert (result.code, result.err) == (0, "")
    assert word in result.out


def test_list_kernels_names_them_with_their_device() -> None:
    result = moecheck("list")
    assert result.code == 0
    assert "torch/index_add" in result.out
    assert "declared" in result.out
    assert "Broken" not in result.out


def test_doctor_finds_nothing_broken() -> None:
    result = moecheck("doctor")
    assert result.code == 0, result.out
    assert "broken" not in result.out
    assert "torch worker" in result.out


def test_help_and_version() -> None:
    assert "Exit codes: 0 all passed" in moecheck("--help").out
    assert moecheck("--version").out.startswith("moecheck, version ")
    assert "--tol" in moecheck("kernels", "-h").out


@pytest.mark.parametrize("op", [op for op in OPS if op != "quantize"])
def test_a_new_kernel_runs_and_declines(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert moecheck("new-kernel", "mine", "--op", op, "--backend", "numpy").code == 0
    spec = f"{tmp_path / 'mine.py'}:mine"
    result = moecheck("kernels", *QUICK, "--kernel", spec, out=tmp_path)
    assert result.code == 4, result.out + result.err
    assert result.kernel(spec)["verdict"] == "skip"
    assert any(line.message == "not written yet" for line in result.findings(spec))
    assert moecheck("new-kernel", "mine", "--op", op).code == 2  # it exists


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_kernel_of_every_backend_is_python(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert moecheck("new-kernel", "mine", "--op", "fused_experts", "--backend", backend).code == 0
    compile((tmp_path / "mine.py").read_text(encoding="utf-8"), "mine.py", "exec")


@pytest.mark.parametrize(("command", "kept"), [("kernels", True), ("audit", False), ("mutants", False)])
def test_ctrl_c_offers_to_go_on_only_where_something_is_kept(
    command: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    result = moecheck(command)

    assert result.code == 130
    assert ("--resume" in result.err) is kept
