"""What `moecheck kernels --kernel file.py:function` says of correct, wrong and hostile kernels of users."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import QUICK, Result, moecheck
from tests.cli.user_kernels import BEGINNINGS, ENDINGS, REPLACED, write_kernel

pytestmark = pytest.mark.xdist_group("user kernels")

RIGHT = (
    "correct",
    "prints",
    "forks",
    "closes-its-output",
    "changes-defaults",
    "changes-directory",
    "in-a-list",
)
# Name -> (verdict, what its message or place must name).
WRONG = {
    "zeros": ("proven_wrong", "token"),
    "swapped": ("proven_wrong", "token"),
    "last-slot-dropped": ("proven_wrong", "token"),
    "weights-too-large": ("proven_wrong", "token"),
    "row-not-written": ("proven_wrong", "all in token 63"),
    "nan": ("proven_wrong", "token 32, column 5: got nan"),
    "cached": ("proven_wrong", "token"),
    "mutates": ("proven_wrong", "hidden_states"),
    "none": ("proven_wrong", "NoneType"),
    "shape": ("proven_wrong", "has shape [64, 255], expected [64, 256]"),
    "transposed": ("proven_wrong", "has shape [256, 64], expected [64, 256]"),
    "dtype": ("proven_wrong", "has dtype int32, expected float32"),
    "float64": ("proven_wrong", "has dtype float64, expected float32"),
    "list": ("proven_wrong", "list is no torch, jax or NumPy array"),
    "string": ("proven_wrong", "str is no torch, jax or NumPy array"),
    "dictionary": ("proven_wrong", "dict is no torch, jax or NumPy array"),
    "three-outputs": ("proven_wrong", "Returned 3 outputs, fused_experts has 1: out."),
    "sparse": ("proven_wrong", "no array"),
    "meta": ("proven_wrong", "no array"),
    "raises": ("crash", "ValueError at kernel_raises.py:11: tile size 7 is odd"),
    "raises-for-fp32": ("crash", "AssertionError at kernel_raises_for_fp32.py:11: no fp32 here"),
    "raises-a-long-text": ("crash", "first line xxx"),
    "raises-what-cannot-be-printed": ("crash", "Odd at kernel_raises_what_cannot_be_printed.py:11"),
    "exits": ("crash", "exit code 7"),
    "exits-well": ("crash", "exit code 0"),
    "exits-politely": ("crash", "SystemExit at kernel_exits_politely.py:11: enough"),
    "interrupts": ("crash", "KeyboardInterrupt at kernel_interrupts.py:11"),
    "leaves-a-bomb": ("crash", "Its process ended"),
    "loses-its-device": ("crash", "illegal access; the device takes no more work from that process."),
    "segfaults": ("crash", "signal 11 (SIGSEGV); it printed: Fatal Python error: Segmentation fault"),
    "hangs": ("timeout", "No result after 6 s"),
    "hangs-holding-the-lock": ("timeout", "No result after 6 s"),
    "hangs-ignoring-signals": ("timeout", "No result after 6 s"),
    "allocates": ("crash", "Ran out of memory"),
    "recurses": ("crash", "RecursionError at kernel_recurses.py:11"),
    "needs-a-gpu": ("crash", "kernel_needs_a_gpu.py:11"),
}


def test_every_user_kernel_has_an_expected_verdict() -> None:
    assert {*RIGHT, *WRONG, "declines"} == {*REPLACED, *ENDINGS, *BEGINNINGS}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_kernel_passes(name: str, user_run: Result, user_specs: dict[str, str]) -> None:
    record = user_run.kernel(user_specs[name])
    assert (record["verdict"], record["worst_case"] is None) == ("pass", False)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_told_what_and_where(name: str, user_run: Result, user_specs: dict[str, str]) -> None:
    verdict, words = WRONG[name]
    spec = user_specs[name]

    record = user_run.kernel(spec)
    lines = [finding for finding in user_run.findings(spec) if finding.check == "case"]
    said = [f"{line.message} {' '.join(line.where)}" for line in lines if line.verdict.value == verdict]

    assert record["verdict"] == verdict
    assert any(words in text for text in said), said
    assert all(len(line.message) < 1000 for line in lines)
    assert "moecheck replay" in record["reproduce"]
    assert Path(record["reproduce"].split()[-1]).is_file()


def test_a_segfault_names_the_line_of_the_kernel(user_run: Result, user_specs: dict[str, str]) -> None:
    messages = [finding.message for finding in user_run.findings(user_specs["segfaults"])]
    assert any("kernel_segfaults.py:11" in message for message in messages), messages


@pytest.mark.parametrize("name", ["hangs", "hangs-holding-the-lock", "hangs-ignoring-signals"])
def test_a_hang_is_waited_for_once(name: str, user_run: Result, user_specs: dict[str, str]) -> None:
    lines = [finding for finding in user_run.findings(user_specs[name]) if finding.check == "case"]
    assert [line.verdict.value for line in lines].count("timeout") == 1
    assert any(line.message.startswith("not run: the kernel timed out on") for line in lines)
    assert user_run.kernel(user_specs[name])["seconds"] < 30


@pytest.mark.parametrize("name", ["allocates", "exits", "loses-its-device", "segfaults"])
def test_a_kernel_that_takes_its_process_down_is_tried_three_times(
    name: str, user_run: Result, user_specs: dict[str, str]
) -> None:
    lines = [finding for finding in user_run.findings(user_specs[name]) if finding.check == "case"]
    assert [line.verdict.value for line in lines].count("crash") == 3


def test_one_unsupported_dtype_does_not_hide_the_others(write: Path, tmp_path: Path) -> None:
    spec = write_kernel(write, "raises-for-fp32")
    result = moecheck("kernels", "--kernel", spec, "--profile", "quick", "--examples", "0", out=tmp_path)
    verdicts = {line.case.split("/")[1]: line.verdict.value for line in result.findings(spec) if line.check == "run"}
    assert verdicts == {"fp32": "crash"}
    assert "pass" in {line.verdict.value for line in result.findings(spec) if line.check == "case"}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("correct", 0, id="all passed"),
        pytest.param("zeros", 1, id="a check failed"),
        pytest.param("declines", 4, id="nothing was checked"),
    ],
)
def test_the_exit_code_says_how_it_went(name: str, code: int, write: Path, tmp_path: Path) -> None:
    result = moecheck("kernels", *QUICK, "--kernel", write_kernel(write, name), out=tmp_path)
    assert result.code == code, result.err


def test_a_kernel_asked_for_and_never_checked_is_no_pass_beside_one_that_passed(write: Path, tmp_path: Path) -> None:
    specs = [write_kernel(write, name) for name in ("correct", "declines")]
    result = moecheck("kernels", *QUICK, "--kernel", specs[0], "--kernel", specs[1], out=tmp_path)
    assert [result.kernel(spec)["verdict"] for spec in specs] == ["pass", "skip"]
    assert result.code == 4
    assert not list((result.folder / "cases").iterdir())  # it holds failing cases only


def test_nothing_but_vacuous_cases_is_no_pass(write: Path, tmp_path: Path) -> None:
    spec = write_kernel(write, "correct")
    result = moecheck("kernels", *QUICK, "--tol", "10", "--kernel", spec, out=tmp_path)
    assert result.code == 4
    assert "vacuous" in result.out
