"""A disk that takes no more: what was kept to save time is made again; a report ends in a sentence."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.errors import UsageError
from moecheck.oracle import _shared
from moecheck.report.findings_file import replace_file
from moecheck.report.folder import ReportFolder
from moecheck.runner.input_store import WORTH_SHARING, shared_inputs

CASE = Case(op="fused_experts", num_tokens=8, num_experts=8, hidden_size=256, intermediate_size=64)


@contextmanager
def full(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: writes fail as on a full disk, in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 8192])
def test_inputs_that_cannot_be_kept_are_drawn(size: int, tmp_path: Path) -> None:
    assert CASE.elements >= WORTH_SHARING
    with full(size):
        found = shared_inputs(CASE, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    for name, value in CASE.inputs().items():
        assert np.asarray(found[name]).tobytes() == np.asarray(value).tobytes()


@pytest.mark.parametrize("size", [0, 100, 8192, 100_000])
def test_results_that_cannot_be_kept_are_computed(size: int, tmp_path: Path) -> None:
    value = np.random.Generator(np.random.Philox(1)).bytes(1 << 17)
    with full(size):
        assert _shared(tmp_path, "key", lambda: value) == value
        assert _shared(tmp_path, "key", lambda: value[1:]) == value[1:]
    assert _shared(tmp_path, "key", lambda: value) == value
    assert _shared(tmp_path, "key", lambda: b"not needed") == value


def test_a_report_on_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old", encoding="utf-8")
    with full(100), pytest.raises(UsageError, match=r"Cannot write .*summary\.json: File too large"):
        replace_file(path, "new" * 1000)
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_that_takes_no_report() -> None:
    with pytest.raises(UsageError, match="Cannot write a report into /proc/moecheck: "):
        ReportFolder.create(Path("/proc/moecheck"))


def test_one_run_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    folder = ReportFolder.create(tmp_path)
    again = ReportFolder.open(folder.path)
    refused = pytest.raises(UsageError, match=r"Another run is writing into .*; wait for its end\.")
    with folder.held(), refused, again.held():
        pytest.fail("both write")
    with again.held():
        pass
