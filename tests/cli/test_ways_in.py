"""Kernels by file, module, entry point and name, with and without the decorator, in every framework."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from moecheck.errors import UsageError
from moecheck.registry import discover
from tests.cli.command import QUICK, moecheck, start
from tests.cli.user_kernels import CORRECT, write_kernel

GIB = 1 << 30
NUMPY = """\
    import numpy as np

    def moe(hidden_states, w13, w2, topk_weights, topk_ids):
        x, out = np.asarray(hidden_states, np.float32), np.zeros(hidden_states.shape, np.float32)
        for expert in range(w13.shape[0]):
            token, slot = np.nonzero(np.asarray(topk_ids) == expert)
            gate, up = np.split(x[token] @ np.asarray(w13[expert], np.float32).T, 2, axis=1)
            down = gate / (1 + np.exp(-gate)) * up @ np.asarray(w2[expert], np.float32).T
            np.add.at(out, token, down * np.asarray(topk_weights)[token, slot, None])
        return out.astype(hidden_states.dtype)
"""
JAX = """\
    import jax
    import jax.numpy as jnp

    def moe(hidden_states, w13, w2, topk_weights, topk_ids):
        out = jnp.zeros(hidden_states.shape, jnp.float32)
        for expert in range(w13.shape[0]):
            weight = jnp.where(topk_ids == expert, topk_weights, 0).sum(1, keepdims=True)
            gate, up = jnp.split(jnp.matmul(hidden_states, w13[expert].T, precision="highest"), 2, axis=1)
            out += weight * jnp.matmul(jax.nn.silu(gate) * up, w2[expert].T, precision="highest")
        return out.astype(hidden_states.dtype)
"""
DECORATED = """\
    import moecheck

    @moecheck.kernel("fused_experts", backend="{backend}", dtypes=("fp32",), deterministic=True)
"""
WITH_OUT = CORRECT.replace("topk_ids):", "topk_ids, *, out):").replace(
    "    out = torch.zeros(hidden_states.shape, dtype=torch.float32)\n",
    "    assert bool(out.isnan().all())\n    result, out = out, torch.zeros(hidden_states.shape)\n",
)
LAST_OUT = "    out = out.to(hidden_states.dtype)\n    return out\n"
WITH_SPEC = CORRECT.replace("topk_ids):", "topk_ids, *, spec):").replace(
    "    out = torch.zeros(",
    "    import moecheck\n"
    "    if spec != moecheck.ExpertSpec():\n"
    "        raise moecheck.Unsupported(f'{spec.activation} is not done')\n"
    "    out = torch.zeros(",
)
SOURCES = {
    "numpy": NUMPY,
    "jax": JAX,
    "numpy decorated": NUMPY.replace("    def", DECORATED.format(backend="numpy") + "    def"),
    "jax decorated": JAX.replace("    def", DECORATED.format(backend="jax") + "    def"),
    "out returned": WITH_OUT.replace(LAST_OUT, "    return result.copy_(out)\n"),
    "out written": WITH_OUT.replace(LAST_OUT, "    result.copy_(out)\n"),
    "spec": WITH_SPEC,
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_right_kernel_of_every_kind_passes(name: str, write: Path, tmp_path: Path) -> None:
    path = write / "mine.py"
    path.write_text(textwrap.dedent(SOURCES[name]), encoding="utf-8")
    result = moecheck("kernels", *QUICK, "--kernel", f"{path}:moe", out=tmp_path)
    assert result.code == 0, result.out + result.err
    record = result.kernel(f"{path}:moe")
    assert record["backend"] == name.split()[0] if name.split()[0] in ("numpy", "jax") else "torch"
    if name == "spec":
        reasons = {line.message for line in result.findings(f"{path}:moe") if line.verdict.value == "skip"}
        assert "gelu is not done" in reasons


def test_out_that_is_not_written_is_found(write: Path, tmp_path: Path) -> None:
    path = write / "mine.py"
    path.write_text(WITH_OUT.replace(LAST_OUT, "    result[:-1] = out[:-1]\n"), encoding="utf-8")
    result = moecheck("kernels", *QUICK, "--kernel", f"{path}:moe", out=tmp_path)
    assert result.code == 1
    assert any("all in token 63" in line.message for line in result.findings(f"{path}:moe"))


def test_a_module_of_the_current_folder(write: Path, tmp_path: Path) -> None:
    (write / "mine.py").write_text(CORRECT, encoding="utf-8")
    process = start("kernels", *QUICK, "--kernel", "mine:moe", "--out", tmp_path, cwd=write)
    out, err = process.communicate()
    assert process.returncode == 0, out + err


def test_files_named_like_the_standard_library_do_no_harm(write: Path, tmp_path: Path) -> None:
    for name in ("profile", "select", "string", "random", "torch", "numpy"):
        (write / f"{name}.py").write_text("raise RuntimeError('not meant')", encoding="utf-8")
    spec = write_kernel(write, "correct")
    (write / "torch.py").unlink()  # the kernel itself imports it, from its own folder as Python does
    (write / "numpy.py").unlink()
    process = start("list", "ops", cwd=write)
    assert process.communicate()[1] == ""
    process = start("kernels", *QUICK, "--kernel", spec, "--out", tmp_path, cwd=write)
    out, err = process.communicate()
    assert process.returncode == 0, out + err


def test_two_kernels_of_one_name(write: Path) -> None:
    text = "import moecheck\n\n@moecheck.kernel('shuffle_rows', backend='numpy', name='mine')\ndef f(x, row_map): ...\n"
    for name in ("one", "two"):
        (write / f"{name}_kernels.py").write_text(text, encoding="utf-8")
    sys.path.insert(0, str(write))
    try:
        with pytest.raises(
            UsageError, match=r"Two kernels are named 'mine': .*one_kernels.py:3 and .*two_kernels.py:3"
        ):
            discover(["one_kernels:f", "two_kernels:f"], op=None, backend=None, memory=2 * GIB, jobs=1)
    finally:
        sys.path.remove(str(write))


def test_entry_points_are_found_and_a_broken_one_harms_no_other(write: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write / "others_kernels.py").write_text(CORRECT, encoding="utf-8")
    info = write / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[moecheck.kernels]\nothers = others_kernels:moe\nbroken = others_broken:moe\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(write))
    monkeypatch.setattr("moecheck.registry.builtin_modules", lambda: ["moecheck.kernels.torch.activation"])
    every = discover([], op=None, backend=None, memory=4 * GIB, jobs=1)
    named = discover(["others"], op=None, backend=None, memory=4 * GIB, jobs=1)
    assert "others" in {found.declaration.name for found in every.found}
    assert "There is no module others_broken" in every.broken["broken"]
    assert [found.declaration.name for found in named.found] == ["others"]
    with pytest.raises(UsageError, match="There is no module others_broken"):
        discover(["broken"], op=None, backend=None, memory=4 * GIB, jobs=1)
