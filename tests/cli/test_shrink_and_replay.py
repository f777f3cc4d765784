"""A failing case gets smaller, is saved, and fails again when it is replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import QUICK, Result, moecheck
from tests.cli.user_kernels import CORRECT, LAST, write_kernel

pytestmark = pytest.mark.xdist_group("user kernels")


def write_wrong(folder: Path, name: str, condition: str, damage: str = "out += 1") -> str:
    """A kernel that is wrong only where the condition holds."""
    path = folder / f"{name}.py"
    path.write_text(CORRECT.replace(LAST, f"    if {condition}:\n        {damage}\n{LAST}"), encoding="utf-8")
    return f"{path}:moe"


def saved_case(result: Result, spec: str) -> tuple[Path, dict[str, Any]]:
    path = Path(result.kernel(spec)["reproduce"].split()[-1])
    return path, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "condition", "sizes"),
    [
        pytest.param(
            "wide", "hidden_states.shape[1] > 64", {"num_tokens": (1, 1), "hidden_size": (65, 255)}, id="wide rows only"
        ),
        pytest.param("expert3", "(topk_ids == 3).any()", {"num_tokens": (1, 63)}, id="expert 3 only"),
        pytest.param("always", "True", {"num_tokens": (1, 1), "hidden_size": (1, 8)}, id="always"),
    ],
)
def test_a_failing_case_is_made_smaller_and_replays(
    name: str,
    condition: str,
    sizes: dict[str, tuple[int, int]],
    write: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moecheck.runner.run.SHRINK_SECONDS", 120.0)  # however slow the machine is
    spec = write_wrong(write, name, condition)

    result = moecheck("kernels", *QUICK, "--kernel", spec, out=tmp_path)
    path, record = saved_case(result, spec)
    replayed = moecheck("replay", path)
    inline = moecheck("replay", json.dumps(record))
    bare = moecheck("replay", json.dumps(record["case"]), "--kernel", spec)

    assert result.code == 1
    outside = {n: record["case"][n] for n, (low, high) in sizes.items() if not low <= record["case"][n] <= high}
    assert outside == {}
    assert not record["found_as"].endswith(record["id"])
    assert [replayed.code, inline.code, bare.code] == [1, 1, 1], replayed.err + inline.err + bare.err
    assert "token 0" in replayed.out


def test_a_saved_case_passes_once_the_kernel_is_repaired(write: Path, tmp_path: Path) -> None:
    spec = write_wrong(write, "repaired", "True")
    path, record = saved_case(moecheck("kernels", *QUICK, "--kernel", spec, out=tmp_path), spec)
    (write / "repaired.py").write_text(CORRECT, encoding="utf-8")
    # A case of one token and one column may be too small to be more than vacuous.
    assert moecheck("replay", path).code in (0, 4)
    assert moecheck("replay", json.dumps({**record, "case": {**record["case"], "num_tokens": 64}})).code in (0, 4)
    assert moecheck("replay", path, "--kernel", write_kernel(write, "zeros")).code in (1, 4)


def test_a_hang_is_saved_as_found(user_run: Result, user_specs: dict[str, str]) -> None:
    _, record = saved_case(user_run, user_specs["hangs"])
    assert record["found_as"].endswith(record["id"])
    assert record["case"]["num_tokens"] == 64


def test_a_case_of_another_op_is_refused(write: Path, tmp_path: Path) -> None:
    result = moecheck("replay", '{"op": "permute"}', "--kernel", write_kernel(write, "correct"))
    assert result.code == 2
    assert "Traceback" not in result.err
