"""Bad input is answered with one sentence, exit code 2 and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moecheck.cases import Case
from moecheck.cli.kernels import Options
from tests.cli.command import QUICK, Result, moecheck
from tests.cli.user_kernels import CORRECT, write_kernel


def sentence(result: Result) -> str:
    """The one line that a user sees."""
    assert result.code == 2, (result.code, result.out, result.err)
    lines = [line for line in result.err.strip().splitlines() if line]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("moecheck: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["kernel"], "Did you mean 'kernels'?", id="command"),
        pytest.param(["frobnicate"], "Known: audit, bench, check, doctor, e2e, history, ", id="command unlike any"),
        pytest.param(["kernels", "--op", "fused_expert"], "Did you mean 'fused_experts'?", id="op"),
        pytest.param(["kernels", "--model", "mixtral"], "Did you mean 'mixtral-8x7b'?", id="model"),
        pytest.param(["kernels", "--dtype", "fp31"], "Did you mean 'fp", id="dtype"),
        pytest.param(["kernels", "--profile", "fast"], "Unknown profile 'fast'.", id="profile"),
        pytest.param(["kernels", "--backend", "touch"], "Did you mean 'torch'?", id="backend"),
        pytest.param(["kernels", "--tol", "-1"], "--tol must be a finite number of at least 0", id="negative tol"),
        pytest.param(["kernels", "--tol", "nan"], "--tol must be a finite number", id="NaN tol"),
        pytest.param(["kernels", "--tol", "inf"], "--tol must be a finite number", id="infinite tol"),
        pytest.param(["kernels", "--tol", "small"], "'small' is not a valid float", id="tol that is no number"),
        pytest.param(["kernels", "--max-mismatch", "nan"], "--max-mismatch must be", id="NaN max-mismatch"),
        pytest.param(["kernels", "--timeout", "0"], "--timeout must be a finite number above 0", id="no time"),
        pytest.param(
            ["kernels", "--kernel", "a", "--kernel", "b", "--kernel", "a"], "--kernel a is given 2 times", id="twice"
        ),
        pytest.param(["kernels", "--require", "topk_weight=fp32"], "Did you mean 'topk_weights'?", id="require field"),
        pytest.param(["kernels", "--require", "combine=fp31"], "Did you mean 'fp", id="require format"),
        pytest.param(["kernels", "--require", "combine"], "must be FIELD=FORMAT", id="require without a format"),
        pytest.param(
            ["kernels", "--require", "out=fp32"], "Unknown field of --require 'out'", id="require of the output"
        ),
        pytest.param(
            ["kernels", "--require", "combine=fp32", "--require", "combine=bf16"],
            "--require combine is given twice",
            id="required twice",
        ),
        pytest.param(
            ["replay", '{"case": {"op": "permute"}, "spec_string": "torch/permute", "require": 3}'],
            "must be a list of FIELD=FORMAT",
            id="inline case with a bad requirement",
        ),
        pytest.param(["kernels", "--jobs", "0"], "--jobs", id="no jobs"),
        pytest.param(["kernels", "--examples", "-1"], "--examples", id="negative examples"),
        pytest.param(["kernels", "--kernel", "nowhere.py:moe"], "There is no kernel file nowhere.py.", id="no file"),
        pytest.param(["kernels", "--kernel", "mine.py"], "say which function of it", id="no function named"),
        pytest.param(["kernels", "--kernel", "mine.py:"], "must be PATH.py:FUNCTION", id="empty function"),
        pytest.param(["kernels", "--kernel", ":moe"], "must be PATH.py:FUNCTION", id="empty file"),
        pytest.param(
            ["kernels", "--kernel", "no.such.module:moe"], "There is no module no.such.module", id="no module"
        ),
        pytest.param(["kernels", "--resume", "nowhere"], "nowhere is no report folder", id="resume nowhere"),
        pytest.param(["kernels", "--resume", "x", "--tol", "1"], "leave out --tol", id="resume with options"),
        pytest.param(["list", "opps"], "Did you mean 'ops'?", id="list"),
        pytest.param(["new-kernel", "a-b", "--op", "permute"], "'a-b' must be a Python name", id="new-kernel name"),
        pytest.param(["new-kernel", "class", "--op", "permute"], "must be a Python name", id="new-kernel keyword"),
        pytest.param(["new-kernel", "mine", "--op", "permut"], "Did you mean 'permute'?", id="new-kernel op"),
        pytest.param(["new-kernel", "mine"], "Missing option '--op'", id="new-kernel without op"),
        pytest.param(["replay", "nowhere.json"], "Cannot read the case file nowhere.json", id="replay nowhere"),
        pytest.param(["replay", '{"op": "permute"'], "is not complete JSON", id="truncated inline case"),
        pytest.param(["replay", '{"op": "permute"}'], "say which one with --kernel SPEC", id="case without kernel"),
        pytest.param(["replay", '{"case": 3}'], "must be a JSON object", id="inline case that is none"),
    ],
)
def test_bad_words(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in sentence(moecheck(*arguments))
    assert not list(tmp_path.iterdir())


def test_an_unknown_kernel_gets_the_near_name(tmp_path: Path) -> None:
    result = moecheck("kernels", "--kernel", "torch/index_ad", out=tmp_path)
    assert "Unknown kernel 'torch/index_ad'. Did you mean 'torch/index_add'?" in sentence(result)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(CORRECT.encode(), "has no function 'mo'. Did you mean 'moe'?", id="function not there"),
        pytest.param(b"mo = 3\n", "'mo' in ", id="not a function"),
        pytest.param(b"def mo(:\n", "does not parse: line 1", id="syntax error"),
        pytest.param(b"# \xff\n", "is not UTF-8 text", id="not UTF-8"),
        pytest.param(b"\x00", "does not parse", id="null byte"),
        pytest.param(
            b"import no_such_package\n", "needs no_such_package, which is not installed", id="missing package"
        ),
        pytest.param(b"from torch import nothing\n", "ImportError at kernel.py:1", id="broken import"),
        pytest.param(b"1 / 0\n", "ZeroDivisionError at kernel.py:1", id="raises at import"),
        pytest.param(b"import sys; sys.exit(3)\n", "SystemExit at kernel.py:1", id="sys.exit at import"),
        pytest.param(b"import os; os._exit(3)\n", "ends the process", id="os._exit at import"),
        pytest.param(b"import os; os._exit(0)\n", "ends the process", id="os._exit(0) at import"),
        pytest.param(b"import time; time.sleep(1000)\n", "took longer than 3 s", id="hangs at import"),
        pytest.param(b"def mo(x): pass\n", "Which op is 'mo'? Say --op", id="op unclear"),
        pytest.param(b"def mo(hidden, w1): pass\n", "Which op is 'mo'? Say --op", id="no op fits"),
        pytest.param(b"def mo(*args): pass\n", "op", id="variable arguments"),
        pytest.param(b"class mo: pass\n", "mo", id="a class"),
        pytest.param(b"import functools\nmo = functools.partial(print)\n", "mo", id="a partial"),
        pytest.param(b"mo = print\n", "mo", id="a builtin"),
    ],
)
def test_a_kernel_file_that_cannot_serve(
    text: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moecheck.registry.IMPORT_TIMEOUT", 3.0)
    path = tmp_path / "kernel.py"
    path.write_bytes(text)
    assert words in sentence(moecheck("kernels", "--kernel", f"{path}:mo", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_is_no_kernel_file(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").mkdir()
    assert "Is a directory" in sentence(moecheck("kernels", "--kernel", f"{tmp_path / 'kernel.py'}:mo"))


def test_an_output_folder_below_a_file(write: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spec = write_kernel(write, "correct")
    result = moecheck("kernels", *QUICK, "--kernel", spec, out=tmp_path / "file" / "out")
    assert "Cannot write a report into" in sentence(result)


def test_an_op_that_does_not_fit_the_arguments(write: Path, tmp_path: Path) -> None:
    spec = write_kernel(write, "correct")
    assert "moe needs the argument 'w13', which 'permute' does not have" in sentence(
        moecheck("kernels", "--op", "permute", "--kernel", spec, out=tmp_path)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda text: text[: len(text) // 2], "is not complete JSON", id="truncated"),
        pytest.param(lambda text: "", "is not complete JSON", id="empty"),
        pytest.param(lambda text: "[]", "must hold a JSON object, not list", id="a list"),
        pytest.param(lambda text: text.replace("num_tokens", "num_token"), "Did you mean 'num_tokens'?", id="field"),
        pytest.param(lambda text: text.replace("top_k", "topk"), "topk", id="field of the spec"),
        pytest.param(lambda text: text.replace('"fp32"', '"fp31"'), "fp31", id="dtype"),
        pytest.param(lambda text: text.replace('"num_tokens": 64', '"num_tokens": -1'), "num_tokens", id="size"),
        pytest.param(lambda text: text.replace('"num_tokens": 64', '"num_tokens": "x"'), "num_tokens", id="type"),
    ],
)
def test_a_damaged_case_file(change: object, words: str, tmp_path: Path) -> None:
    assert callable(change)
    path = tmp_path / "case.json"
    text = json.dumps({"spec_string": "x.py:moe", "case": Case(op="fused_experts", dtype="fp32").to_json()})
    path.write_text(change(text), encoding="utf-8")
    assert words in sentence(moecheck("replay", path))


@pytest.mark.parametrize("text", ["", "{}", '{"options": {}}', '{"options": {"tol": 1}}', "[]", '{"options": 3}'])
def test_resume_of_a_folder_whose_options_are_lost(text: str, tmp_path: Path) -> None:
    (tmp_path / "findings.jsonl").touch()
    (tmp_path / "environment.json").write_text(text, encoding="utf-8")
    assert "does not tell the options of the run" in sentence(moecheck("kernels", "--resume", tmp_path))


def test_resume_checks_options_that_were_edited(tmp_path: Path) -> None:
    (tmp_path / "findings.jsonl").touch()
    options = dict.fromkeys(Options.__dataclass_fields__, None) | {"tol": 0.01, "kernel": [], "seed": 0, "profile": "x"}
    options |= {"sweep": False, "device_trials": False}
    (tmp_path / "environment.json").write_text(json.dumps({"options": options}), encoding="utf-8")
    assert "Unknown profile 'x'." in sentence(moecheck("kernels", "--resume", tmp_path))
