"""The measured tiles that come with the Triton experts, the rule where nothing was measured, and impossible tiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moecheck.kernels.triton._tiles import ITEMSIZE, TUNING, by_rule, from_numbers, problem, tiles_of
from moecheck.tuning import VARIABLE, Layer
from moecheck.tuning.table import Table, load, write
from moecheck.tuning.tunable import forget

LAYER = Layer(device="some GPU", experts=8, intermediate=14336, hidden=4096, top_k=2, weights="bf16")
RULED = by_rule(experts=8, itemsize=2, pairs=32)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing remembered of another test's file."""
    monkeypatch.delenv(VARIABLE, raising=False)
    forget()
    yield
    forget()


def written(path: Path, tokens: int = 16, **changes: int) -> Path:
    write(path, Table(kernel=TUNING.kernel, layers={LAYER: {tokens: RULED.numbers() | changes}}))
    return path


def test_the_packaged_file_can_be_used() -> None:
    assert TUNING.packaged is not None
    table = load(TUNING.packaged, TUNING.values, TUNING.problem)
    assert table.kernel == TUNING.kernel
    for layer, rows in table.layers.items():
        for tokens, found in rows.items():
            assert tiles_of(layer, tokens).numbers() == found


def test_tiles_are_numbers_and_back() -> None:
    assert from_numbers(RULED.numbers()) == RULED
    assert set(RULED.numbers()) == set(TUNING.values)


def test_a_named_file_comes_before_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(written(tmp_path / "tuned.json", block_m=32)))
    assert tiles_of(LAYER, 16).block_m == 32


def test_fp16_uses_what_was_measured_for_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(written(tmp_path / "tuned.json", block_m=32)))
    fp16 = Layer(device="some GPU", experts=8, intermediate=14336, hidden=4096, top_k=2, weights="fp16")
    assert tiles_of(fp16, 16).block_m == 32


@pytest.mark.parametrize("itemsize", sorted(set(ITEMSIZE.values())))
@pytest.mark.parametrize("experts", [1, 8, 256])
@pytest.mark.parametrize("pairs", [0, 1, 200, 4096, 10**6])
def test_the_rule_gives_tiles_that_can_work(pairs: int, experts: int, itemsize: int) -> None:
    weights = next(name for name, size in ITEMSIZE.items() if size == itemsize)
    layer = Layer(device="some GPU", experts=experts, intermediate=512, hidden=512, top_k=1, weights=weights)
    numbers = by_rule(experts=experts, itemsize=itemsize, pairs=pairs).numbers()
    assert problem(numbers, layer) is None
    assert all(numbers[name] in allowed for name, allowed in TUNING.values.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"gate_up_block_k": 256, "gate_up_block_n": 128}, "bytes of shared memory", id="memory"),
        pytest.param({"block_m": 128, "down_block_n": 256, "down_num_warps": 1, "down_block_k": 16},
                     "values to add up", id="accumulators"),
    ],
)  # fmt: skip
def test_tiles_that_cannot_work(changes: dict[str, int], said: str) -> None:
    assert said in str(problem(RULED.numbers() | changes, LAYER))


@pytest.mark.parametrize("kernel", ["moecheck.kernels.triton.experts:fused_gate_up", "triton/fused_gate_up"])
def test_a_wrong_file_ends_a_run_before_it_begins(tmp_path: Path, kernel: str) -> None:
    path = written(tmp_path / "tuned.json", block_m=17)
    assert json.loads(path.read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-m", "moecheck", "kernels", "--kernel", kernel,
         "--profile", "quick", "--out", str(tmp_path)],
        env=os.environ | {VARIABLE: str(path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "block_m = 17 is none of 16, 32, 64, 128" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
