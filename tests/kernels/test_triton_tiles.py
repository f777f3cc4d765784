"""The file of measured tiles: what it must hold, what is said of a wrong one, the rule where nothing was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moecheck.errors import UsageError
from moecheck.kernels.triton import _tiles
from moecheck.kernels.triton._tiles import ITEMSIZE, Shape, as_entry, by_rule, configuration, load, problem

SHAPE = Shape(device="some GPU", experts=8, intermediate=14336, hidden=4096, dtype="bf16")
RULED = by_rule(experts=8, itemsize=2, pairs=32)
ONE_WARP = {"block_n": 256, "block_k": 16, "group_m": 1, "num_warps": 1, "num_stages": 1}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing remembered of another test's file."""
    monkeypatch.delenv(_tiles.VARIABLE, raising=False)
    for remembered in (_tiles._table, _tiles._warn_absent, _tiles._tell_unmeasured):
        remembered.cache_clear()
    yield
    _tiles._table.cache_clear()


def written(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"schema": 1, "entries": entries}), encoding="utf-8")
    return path


def entry(pairs: int = 32, **changes: Any) -> dict[str, Any]:
    return as_entry(SHAPE, pairs, RULED) | changes


def test_the_packaged_file_can_be_used_and_is_read_back_as_written() -> None:
    table = load(_tiles.PACKAGED)
    assert table
    entries = [as_entry(shape, pairs, found) for shape, rows in table.items() for pairs, found in rows.items()]
    assert entries == json.loads(_tiles.PACKAGED.read_text(encoding="utf-8"))["entries"]


def test_the_nearest_number_of_pairs_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "tiles.json", entry(32), entry(8192, block_m=32))
    monkeypatch.setenv(_tiles.VARIABLE, str(path))
    assert [configuration(SHAPE, pairs).block_m for pairs in (1, 100, 3000, 10**6)] == [16, 16, 32, 32]


def test_fp16_uses_what_was_measured_for_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_tiles.VARIABLE, str(written(tmp_path / "tiles.json", entry(32, block_m=32))))
    assert configuration(Shape(**{**_tiles._plain(SHAPE), "dtype": "fp16"}), 32).block_m == 32


def test_another_shape_is_ruled_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(_tiles.VARIABLE, str(written(tmp_path / "tiles.json", entry(32, hidden=8192, block_m=32))))
    with caplog.at_level("INFO", logger=_tiles.log.name):
        assert configuration(SHAPE, 32) == RULED
    assert "No tiles were measured" in caplog.text


def test_an_absent_file_is_ruled_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "PACKAGED", tmp_path / "tiles.json")
    with pytest.warns(UserWarning, match=r"tiles\.json is absent.*mean rows of an expert") as warned:
        assert configuration(SHAPE, 32) == configuration(SHAPE, 32) == RULED
    assert len(warned) == 1


@pytest.mark.parametrize("itemsize", sorted(set(ITEMSIZE.values())))
@pytest.mark.parametrize("experts", [1, 8, 256])
@pytest.mark.parametrize("pairs", [0, 1, 200, 4096, 10**6])
def test_the_rule_gives_tiles_that_can_work(pairs: int, experts: int, itemsize: int) -> None:
    assert problem(by_rule(experts=experts, itemsize=itemsize, pairs=pairs), itemsize) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda e: e.pop("down"), "entry 0 lacks 'down'", id="a part is missing"),
        pytest.param(lambda e: e["down"].pop("block_k"), "down lacks 'block_k'", id="a size is missing"),
        pytest.param(lambda e: e.update(top_k=2), "has the unknown 'top_k'", id="an unknown key"),
        pytest.param(lambda e: e["down"].update(block_q=2), "has the unknown 'block_q'", id="an unknown size"),
        pytest.param(lambda e: e.update(down=[1]), "down must be an object, not list", id="a list for an object"),
        pytest.param(lambda e: e.update(block_m="16"), "block_m = '16' is not of type int", id="text for a number"),
        pytest.param(lambda e: e.update(block_m=True), "block_m = True is not of type int", id="true for a number"),
        pytest.param(lambda e: e.update(dtype="fp4"), "dtype 'fp4' is none of", id="an unknown dtype"),
        pytest.param(lambda e: e.update(pairs=0), "pairs = 0 is not positive", id="no pairs"),
        pytest.param(lambda e: e["down"].update(block_n=96), "block_n = 96 is no power of two", id="not a power of 2"),
        pytest.param(lambda e: e["down"].update(block_k=0), "block_k = 0 is no power of two", id="nothing"),
        pytest.param(lambda e: e["gate_up"].update(num_stages=9), "1 to 8 stages", id="too many stages"),
        pytest.param(lambda e: e["gate_up"].update(group_m=0), "groups of at least one", id="empty groups"),
        pytest.param(lambda e: e["gate_up"].update(block_k=512), "bytes of shared memory", id="too much memory"),
        pytest.param(
            lambda e: e.update(block_m=128, down=ONE_WARP),
            "values to add up",
            id="too many accumulators",
        ),
    ],
)
def test_an_entry_that_cannot_work_is_a_usage_error(tmp_path: Path, change: Change, said: str) -> None:
    one = entry()
    change(one)
    with pytest.raises(UsageError, match=r"cannot be used") as caught:
        load(written(tmp_path / "tiles.json", one))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "are not JSON"),
        ("[]", "the file must be an object, not list"),
        ('{"schema": 2, "entries": []}', "schema 2 is not 1"),
        ('{"schema": 1, "entries": {}}', "entries must be a list, not dict"),
        ('{"schema": 1}', "the file lacks 'entries'"),
        ("\xff", "are not JSON"),
    ],
    ids=["broken", "a list", "another schema", "no list", "no entries", "not UTF-8"],
)
def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tiles.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=said):
        load(path)


def test_the_same_shape_twice_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="entry 1 repeats 32 pairs"):
        load(written(tmp_path / "tiles.json", entry(), entry()))


def test_a_named_file_that_is_absent_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_tiles.VARIABLE, str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match=r"none\.json: No such file"):
        configuration(SHAPE, 32)


@pytest.mark.parametrize("kernel", ["moecheck.kernels.triton.experts:fused_gate_up", "triton/fused_gate_up"])
def test_a_wrong_file_ends_a_run_with_one_sentence_and_exit_code_2(tmp_path: Path, kernel: str) -> None:
    path = written(tmp_path / "tiles.json", entry(block_m=17))
    done = subprocess.run(
        [sys.executable, "-m", "moecheck", "kernels", "--kernel", kernel,
         "--profile", "quick", "--out", str(tmp_path)],
        env=os.environ | {_tiles.VARIABLE: str(path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "block_m = 17 is no power of two" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
