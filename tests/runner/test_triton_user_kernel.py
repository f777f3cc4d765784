"""A user's Triton kernel is judged, not Triton's interpreter: its bf16 stores would truncate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moecheck.cli import run

pytest.importorskip("triton")

KERNEL = """
import moecheck
import torch
import triton
import triton.language as tl


@triton.jit
def _silu_and_mul(x, out, width: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(x + row * 2 * width + column, mask=inside).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + column, mask=inside).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@moecheck.kernel("act_and_mul", backend="triton", numerics=moecheck.Numerics())
def act_and_mul(*, x):
    x = x.contiguous()
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    if rows:
        _silu_and_mul[(rows,)](x, out, width, triton.next_power_of_2(width))
    return out
"""


# Rounding to nearest has an error of rms ulp / sqrt(12), which is sigma; truncation has ulp / sqrt(3), twice that.
BETWEEN_ROUNDING_AND_TRUNCATION = 1.5


def test_a_user_triton_kernel_rounds_in_bf16(tmp_path: Path) -> None:
    """Under the stock interpreter bf16 stores truncate."""
    file = tmp_path / "mine.py"
    file.write_text(KERNEL)
    kernel = f"{file}:act_and_mul"
    assert run(["kernels", "--kernel", kernel, "--profile", "quick", "--dtype", "bf16", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "latest" / "summary.json").read_text())
    (result,) = summary["kernels"]
    assert result["verdict"] == "pass"
    assert 0 < result["rms_z"] < BETWEEN_ROUNDING_AND_TRUNCATION
