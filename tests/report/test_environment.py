"""What a run ran on, where there is no git and no /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecheck.report import environment


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    assert environment.git_commit(tmp_path) is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert environment.git_commit() is None


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package-of-moecheck"))

    assert environment.environment({})["versions"]["no-such-package-of-moecheck"] is None


def test_the_cpu_may_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr("platform.processor", lambda: "")

    assert environment.environment({})["cpu"] is None
