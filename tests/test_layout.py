"""The promises of the source tree: links, public names, light imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import moecheck

ROOT = Path(__file__).parents[1]
LINKED = ("references", "kernels", "evals")
FRAMEWORKS = ("torch", "jax", "triton", "transformers", "lm_eval")
PUBLIC = [
    "CaseError",
    "ExpertSpec",
    "HarnessError",
    "MoESpec",
    "MoecheckError",
    "Numerics",
    "Quantization",
    "Quantizer",
    "RoutingSpec",
    "SpecError",
    "Unsupported",
    "UsageError",
    "WeightLayout",
    "kernel",
]


@pytest.mark.parametrize("name", LINKED)
def test_the_link_resolves(name: str) -> None:
    link = ROOT / "moecheck" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", LINKED)
def test_the_linked_folder_is_no_package_of_its_own(name: str) -> None:
    assert not (ROOT / name / "__init__.py").exists()


def test_the_public_names_are_these() -> None:
    assert sorted(moecheck.__all__) == PUBLIC
    assert all(hasattr(moecheck, name) for name in PUBLIC)


@pytest.mark.parametrize("module", ["moecheck", "moecheck.cli"])
def test_importing_it_imports_no_framework(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {FRAMEWORKS} if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_no_source_file_is_longer_than_400_lines() -> None:
    files = [path for name in ("moecheck", "tests", "tools", *LINKED) for path in (ROOT / name).rglob("*.py")]
    assert [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []
