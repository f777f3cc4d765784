"""`moecheck audit`: what it prints, what it writes, and one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moecheck.audit import PRESETS
from tests.cli.command import moecheck

SMALL = ("--tokens", "6", "--experts", "4", "--hidden", "32", "--intermediate", "16", "--seeds", "1", "--jobs", "1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param([], "audit needs a tolerance", id="nothing"),
        pytest.param(["--preset", "vllm-fused"], "Did you mean 'vllm-fused-moe'?", id="preset"),
        pytest.param(["--atol", "nan"], "--atol must be a finite number of at least 0", id="NaN"),
        pytest.param(["--atol", "-1"], "--atol must be a finite number of at least 0", id="negative"),
        pytest.param(["--atol", "1", "--share", "2"], "share=2.0 must lie above 0", id="share"),
        pytest.param(["--cosine", "2"], "min_cosine=2.0 must lie between", id="cosine"),
        pytest.param(["--atol", "1", "--op", "permute"], "Unknown op to audit 'permute'", id="op"),
        pytest.param(["--atol", "1", "--dtype", "bf61"], "Unknown dtype 'bf61'", id="dtype"),
        pytest.param(["--atol", "1", "--top-k", "9"], "top_k=9 must be", id="top-k"),
        pytest.param(["--atol", "1", "--tokens", "0"], "--tokens", id="no tokens"),
        pytest.param(["--all", "--atol", "1"], "leave out yours", id="all with a tolerance"),
        pytest.param(["--all", "--preset", "alpha-moe"], "leave out --preset", id="all with one"),
        pytest.param(["--preset", "alpha-moe", "--op", "moe_layer"], "leave out --op", id="preset with an op"),
        pytest.param(["--preset", "alpha-moe", "--w2-std", "1"], "leave out --w2-std", id="preset with a scale"),
    ],
)
def test_bad_input_gets_one_sentence(arguments: list[str], words: str) -> None:
    result = moecheck("audit", *arguments)
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert line.startswith("moecheck: ")
    assert words in line


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    result = moecheck("audit", "--atol", "1", *SMALL, "--out", tmp_path / "missing" / "audit.json")
    assert result.code == 2
    assert "Cannot write --out" in result.err


def test_a_tolerance_on_moechecks_inputs(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    result = moecheck("audit", "--atol", "2e-2", "--rtol", "0", "--op", "fused_experts", *SMALL, "--out", path)
    assert result.code == 0
    assert "|d| <= 0.02" in result.out
    assert "Known bugs that it lets pass:" in result.out
    (record,) = json.loads(path.read_text(encoding="utf-8"))["audits"]
    assert record["criterion"] == {"atol": 0.02, "rtol": 0.0}
    assert record["counts"] is True
    assert record["settings"][0]["accepted"]["zeros"] is False


def test_small_inputs_let_zeros_pass() -> None:
    scales = ("--hidden-std", "0.01", "--w13-std", "0.01", "--w2-std", "0.01")
    result = moecheck("audit", "--atol", "1e-2", "--rtol", "1e-1", *SMALL, *scales, "--format", "json")
    assert result.code == 0
    (record,) = json.loads(result.out)["audits"]
    assert record["settings"][0]["accepted"]["zeros"] is True
    assert len(record["passing"]) > len(record["mutants"]) / 2


def test_a_preset_as_markdown_and_with_another_tolerance() -> None:
    result = moecheck(
        "audit", "--preset", "deepgemm-bf16", "--calc-diff", "0", "--seeds", "1", "--jobs", "1",
        "--format", "markdown",
    )  # fmt: skip
    assert result.code == 0
    assert result.out.startswith("### deepgemm-bf16: calc_diff <= 0\n")
    assert "False alarm" in result.out


def test_the_presets_are_listed() -> None:
    result = moecheck("audit", "--list")
    assert result.code == 0
    assert all(name in result.out for name in PRESETS)
