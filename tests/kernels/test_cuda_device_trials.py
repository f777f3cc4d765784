"""On a CUDA device: graphs and streams find the kernels that they are there for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moecheck.checks.finding import FAILURES, Verdict
from tests.cli.command import moecheck

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

KERNELS = '''
import torch

_kept = {}

def honest(x, row_map):
    return x.index_select(0, row_map)

def keeps_the_first_map(x, row_map):
    """It keeps the map by its address, as where a plan is made once."""
    key = (row_map.data_ptr(), tuple(row_map.shape), x.dtype)
    if key not in _kept:
        _kept[key] = row_map.clone()
    kept = _kept[key] if torch.cuda.is_current_stream_capturing() else row_map
    return x.index_select(0, kept)

def on_the_default_stream(x, row_map):
    with torch.cuda.stream(torch.cuda.default_stream()):
        return x.index_select(0, row_map)

def waits(x, row_map):
    torch.cuda.synchronize()
    return x.index_select(0, row_map)
'''


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("honest", set()),
        ("keeps_the_first_map", {"graph_replay"}),
        ("on_the_default_stream", {"side_stream", "busy_default_stream", "graph_replay"}),
        ("waits", set()),
    ],
)
def test_graphs_and_streams(name: str, broken: set[str], tmp_path: Path) -> None:
    """One mutant of each kind, an honest kernel, and one that no graph can hold."""
    file = tmp_path / "mine.py"
    file.write_text(KERNELS, encoding="utf-8")
    result = moecheck(
        "kernels", "--kernel", f"{file}:{name}", "--op", "shuffle_rows", "--backend", "torch", "--profile", "quick",
        out=tmp_path / "reports",
    )  # fmt: skip
    lines = (result.folder / "findings.jsonl").read_text(encoding="utf-8").splitlines()
    findings = [json.loads(line) for line in lines]
    failing = {f["check"] for f in findings if Verdict(f["verdict"]) in FAILURES} - {"case"}
    assert (broken & failing != set()) == bool(broken)
    assert failing <= broken
    observed = [f["numbers"]["capturable_observed"] for f in findings if f["check"] == "on_device"]
    assert observed == [float(name != "waits")] * len(observed)
    assert any(f["facts"].get("launched") for f in findings)
