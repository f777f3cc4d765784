"""One run over all user kernels, shared by the tests that look at what it says of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import QUICK, Result, moecheck
from tests.cli.user_kernels import BEGINNINGS, ENDINGS, REPLACED, write_kernel

GIB = 1 << 30


@pytest.fixture(scope="session")
def user_specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`--kernel` values by the user kernel's name."""
    folder = tmp_path_factory.mktemp("user")
    return {name: write_kernel(folder, name) for name in (*REPLACED, *ENDINGS, *BEGINNINGS)}


@pytest.fixture(scope="session")
def user_run(user_specs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """Every user kernel in one run with little time and memory."""
    arguments = [word for spec in user_specs.values() for word in ("--kernel", spec)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moecheck.runner.run.SHRINK_SECONDS", 0.5)
        # By sys.modules: the package's attribute of that name is the command.
        patch.setattr(sys.modules["moecheck.cli.kernels"], "default_memory", lambda jobs: 2 * GIB)
        yield moecheck("kernels", *QUICK, "--timeout", "6", *arguments, out=tmp_path_factory.mktemp("out"))


@pytest.fixture
def write(tmp_path: Path) -> Path:
    """An empty folder for kernel files."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    return folder
