"""An interpreter that cannot be corrected keeps Triton kernels from running, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecheck.errors import Unsupported
from moecheck.runner.target import Target, load

pytest.importorskip("triton")
KERNEL = """
{imports}

def kernel(x, spec):
    return x
"""


@pytest.fixture(autouse=True)
def _uncorrectable(monkeypatch: pytest.MonkeyPatch) -> None:
    from moecheck.runner import triton_interpreter

    def refuse() -> None:
        raise Unsupported("its interpreter needs another NumPy")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_interpreter, "correct", refuse)


def test_a_torch_kernel_runs(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text(KERNEL.format(imports="import torch"), encoding="utf-8")

    _, declaration = load(Target(spec_string=f"{file}:kernel", op="act_and_mul"))

    assert declaration.backend == "torch"


def test_a_triton_kernel_does_not(tmp_path: Path) -> None:
    file = tmp_path / "tiles.py"
    file.write_text(KERNEL.format(imports="import triton"), encoding="utf-8")

    with pytest.raises(Unsupported, match="another NumPy"):
        load(Target(spec_string=f"{file}:kernel", op="act_and_mul"))
