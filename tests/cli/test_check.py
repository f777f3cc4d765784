"""`moecheck check`: captured calls get their verdicts, and broken dumps one sentence each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from moecheck.errors import HarnessError
from moecheck.formats import AnyArray
from moecheck.ops import OPS
from moecheck.testing import Numerics, capture
from tests.cli.command import Result, moecheck
from tests.testing.calls import LAYER, WRONG, right_outputs, scaled, small_case, swapped

Tensors = dict[str, AnyArray]


def captured(path: Path, op: str = "fused_experts", out: AnyArray | None = None, **more: Any) -> Path:
    """A dump of a small case, with a right output unless another is given."""
    case = small_case(op)
    outputs = right_outputs(case) if out is None else out
    return capture(path, op=op, inputs=case.inputs(), output=outputs, spec=case.spec, **more)


def by_hand(path: Path, change: Tensors | None = None, without: tuple[str, ...] = (), **metadata: str) -> Path:
    """A dump that somebody else wrote: the tensors by their names, and perhaps metadata."""
    case = small_case()
    tensors = {**case.inputs(), "out": right_outputs(case)[0], **(change or {})}
    save_file({name: tensor for name, tensor in tensors.items() if name not in without}, path, metadata=metadata)
    return path


@pytest.mark.parametrize("op", list(OPS))
def test_a_right_call_passes(op: str, tmp_path: Path) -> None:
    result = moecheck("check", captured(tmp_path / "a.safetensors", op, kernel="mine", note="layer 3"))

    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"✔ pass  {tmp_path}/a.safetensors  mine\n")
    assert op in result.out
    assert "layer 3" in result.out


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_call_fails(wrong: Any, tmp_path: Path) -> None:
    result = moecheck("check", captured(tmp_path / "a.safetensors", out=wrong(right_outputs(small_case())[0])))

    assert (result.code, result.err) == (1, "")
    assert result.out.startswith("✘ ")
    assert "token" in result.out
    assert "above the bound" in result.out


def test_it_says_what_the_failure_looks_like_and_which_contract_a_call_has(tmp_path: Path) -> None:
    out = right_outputs(small_case())[0]
    wrong = moecheck("check", captured(tmp_path / "wrong.safetensors", out=swapped(out)))
    right = moecheck("check", captured(tmp_path / "right.safetensors"))

    assert "tokens 0, 1 are exchanged" in wrong.out
    assert "agreement 1.0000" in right.out
    assert "A factor of 1 ± " in right.out
    assert "adds in fp32" in right.out


def test_a_contract_that_is_not_kept_fails(tmp_path: Path) -> None:
    """The declared contract rounds the routing weights, the output does not."""
    path = captured(tmp_path / "a.safetensors", numerics=Numerics(topk_weights="input", combine="input"))
    result = moecheck("check", path)

    assert result.code == 1
    assert "Declares" in result.out


def test_a_dump_by_hand_needs_no_metadata(tmp_path: Path) -> None:
    extra = {"residual": np.zeros(3, np.float32), "router_logits": np.zeros((12, 4), np.float32)}
    result = moecheck("check", by_hand(tmp_path / "a.safetensors", extra), "--op", "fused_experts")

    assert result.code == 0
    assert "not used: residual, router_logits" in result.out


def test_the_op_is_inferred_from_the_tensors(tmp_path: Path) -> None:
    assert moecheck("check", by_hand(tmp_path / "a.safetensors")).code == 0


def test_a_layer_by_hand_takes_its_spec_from_a_file(tmp_path: Path) -> None:
    case = small_case("moe_layer")
    path = tmp_path / "a.safetensors"
    save_file({**case.inputs(), "out": right_outputs(case)[0]}, path)
    (tmp_path / "spec.json").write_text(json.dumps(LAYER.to_json()), encoding="utf-8")

    assert "moe_layer needs a spec" in sentence(moecheck("check", path))
    assert moecheck("check", path, "--spec", tmp_path / "spec.json").code == 0
    assert moecheck("check", path, "--spec", json.dumps(LAYER.to_json())).code == 0


def test_another_spec_gets_another_verdict(tmp_path: Path) -> None:
    path = captured(tmp_path / "a.safetensors")
    assert moecheck("check", path, "--spec", '{"experts": {"activation": "gelu"}}').code == 1


def test_a_call_that_shows_nothing_is_no_pass(tmp_path: Path) -> None:
    inputs = small_case(num_tokens=0).inputs()
    path = capture(tmp_path / "a.safetensors", inputs=inputs, output=np.zeros((0, 64), ml_dtypes.bfloat16))
    result = moecheck("check", path)

    assert result.code == 4
    assert "vacuous" in result.out
    assert moecheck("check", captured(tmp_path / "b.safetensors"), "--tol", "100").code == 4


def test_the_cap_on_mismatches_is_heeded(tmp_path: Path) -> None:
    path = captured(tmp_path / "a.safetensors")
    assert moecheck("check", path, "--tol", "0").code == 0
    result = moecheck("check", path, "--tol", "0", "--max-mismatch", "0")
    # Against the contract that was found every bit is right, so that nothing mismatches at any tolerance.
    assert result.code == (1 if "exceed tol=0" in result.out else 0)


def test_every_dump_gets_its_verdict_and_the_worst_code_wins(tmp_path: Path) -> None:
    right = captured(tmp_path / "right.safetensors")
    wrong = captured(tmp_path / "wrong.safetensors", out=scaled(right_outputs(small_case())[0]))
    nothing = tmp_path / "nothing.safetensors"
    result = moecheck("check", nothing, wrong, right)

    assert result.code == 2
    assert f"✘ proven wrong  {wrong}" in result.out
    assert f"✔ pass  {right}" in result.out
    assert result.out.endswith("3 dumps: 1 not judged, 1 proven wrong, 1 pass\n")
    assert result.err == f"moecheck: {nothing}: there is no such file.\n"
    assert moecheck("check", right, wrong, right).code == 1
    assert moecheck("check", right, right).code == 0


def test_our_own_fault_on_one_dump_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = sys.modules["moecheck.cli.check"]  # the package's attribute of that name is the command
    first, second = captured(tmp_path / "a.safetensors"), captured(tmp_path / "b.safetensors")
    honest = check.examine

    def broken(given: Any, *rest: Any, **more: Any) -> Any:
        if not seen:
            seen.append(given)
            raise ZeroDivisionError("ours")
        return honest(given, *rest, **more)

    seen: list[Any] = []
    monkeypatch.setattr(check, "examine", broken)
    result = moecheck("check", first, second)

    assert result.code == 3
    assert f"✔ pass  {second}" in result.out
    assert "ZeroDivisionError: ours" in result.err
    assert f"{first}: moecheck itself broke" in result.err


def test_a_broken_installation_is_told_for_each_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise HarnessError("no references.")

    monkeypatch.setattr(sys.modules["moecheck.cli.check"], "examine", broken)
    result = moecheck("check", captured(tmp_path / "a.safetensors"), captured(tmp_path / "b.safetensors"))

    assert result.code == 3
    assert result.err.count("moecheck itself is broken: no references.") == 2


def test_a_spec_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_bytes(b"\xff")
    assert "is not UTF-8 text" in sentence(moecheck("check", "x", "--spec", tmp_path / "spec.json"))


def test_json_holds_every_dump(tmp_path: Path) -> None:
    right = captured(tmp_path / "right.safetensors", kernel="mine")
    wrong = captured(tmp_path / "wrong.safetensors", out=swapped(right_outputs(small_case())[0]))
    result = moecheck("check", right, tmp_path / "nothing", wrong, "--format", "json")
    first, second, third = json.loads(result.out)

    assert (first["verdict"], first["kernel"], first["exit_code"]) == ("pass", "mine", 0)
    assert "agreement" in first["contract"]
    assert second == {"dump": str(tmp_path / "nothing"), "error": result.err.strip()[10:], "exit_code": 2}
    assert (third["verdict"], third["check"]) == ("proven_wrong", "values")
    assert third["where"].keys() == {"token", "column"}
    assert "exchanged" in third["diagnosis"]


def sentence(result: Result) -> str:
    """The one line that a user sees of a dump that cannot be read."""
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.strip().splitlines()
    assert line.startswith("moecheck: ")
    return line


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda data: data[:-1], "is no complete safetensors file (", id="one byte less"),
        pytest.param(lambda data: data[:100], "is no complete safetensors file", id="cut in its header"),
        pytest.param(lambda data: data[:5], "is no complete safetensors file", id="five bytes"),
        pytest.param(lambda data: b"", "is no complete safetensors file", id="empty"),
        pytest.param(lambda data: data + b"x", "is no complete safetensors file", id="one byte more"),
        pytest.param(lambda data: b"version https://git-lfs.github.com/spec/v1\n", "is no complete", id="pointer"),
        pytest.param(lambda data: b"PK\x03\x04" + b"0" * 300, "is no complete safetensors file", id="archive"),
        pytest.param(lambda data: data.replace(b'"BF16"', b'"BF99"'), "is no complete safetensors", id="dtype"),
        pytest.param(lambda data: data.replace(b"[12,64]", b"[12,65]"), "is no complete safetensors", id="shape"),
        pytest.param(lambda data: data.replace(b"fused_experts", b"fused_expertz"), "Did you mean 'fused_e", id="op"),
        pytest.param(lambda data: data.replace(rb"\"schema\": 1", rb"\"schema\": 2"), "reads schema 1", id="schema"),
        pytest.param(lambda data: data.replace(rb"\"spec\": {", rb"\"spec\": ["), "not complete JSON", id="record"),
        pytest.param(lambda data: data.replace(rb"\"silu\"", rb"\"sila\""), "activation='sila'", id="spec value"),
        pytest.param(lambda data: data.replace(rb"gated\"", rb"dated\""), "has no field 'dated'", id="spec field"),
        pytest.param(lambda data: data.replace(rb"\"scores\"", rb"\"scared\""), "numerics do not fit", id="numerics"),
    ],
)
def test_a_damaged_dump(damage: Any, words: str, tmp_path: Path) -> None:
    path = captured(tmp_path / "a.safetensors", numerics=Numerics())
    data = path.read_bytes()
    assert damage(data) != data
    path.write_bytes(damage(data))

    assert words in sentence(moecheck("check", path))
    assert str(path) in sentence(moecheck("check", path))


LOGITS = np.ones((12, 4), np.float32)
IDS = np.full((12, 2), 4, np.int32)


@pytest.mark.parametrize(
    ("dump", "words"),
    [
        pytest.param({"without": ("w2",)}, "also needs w2. Say which one with --op", id="no w2"),
        pytest.param({"without": ("out",)}, "also needs out. Say which one with --op", id="no output"),
        pytest.param({"without": ("w2",), "op": True}, "it lacks w2 of fused_experts.", id="no w2, op named"),
        pytest.param(
            {"without": ("w2",), "op": True, "change": {"w_2": IDS}}, "lacks w2 of fused_experts. Did you mean 'w_2'?",
            id="misspelt",
        ),
        pytest.param({"change": {"w2": np.ones((4, 64, 30), ml_dtypes.bfloat16)}}, "w13 has 64 rows", id="shape"),
        pytest.param({"change": {"w2": np.ones((4, 64, 32), np.float32)}}, "w2 is fp32 and hidden_st", id="format"),
        pytest.param({"change": {"w2": np.ones((4, 64, 32), ml_dtypes.float8_e5m2)}}, "float8_e5m2", id="fp8"),
        pytest.param({"change": {"w2": np.ones((4, 64, 32), np.complex64)}}, "w2 has dtype C64", id="complex"),
        pytest.param({"change": {"topk_ids": IDS}}, "topk_ids[0, 0]=4 must lie between -1 and 3", id="ids"),
        pytest.param({"change": {"topk_ids": IDS.astype(np.float32)}}, "topk_ids has dtype float32", id="float ids"),
        pytest.param({"change": {"router_logits": LOGITS}}, "fit topk_routing, fused_experts and moe", id="three ops"),
        pytest.param({"moecheck": "[1]"}, "is not a record that moecheck wrote", id="metadata"),
        pytest.param({"moecheck": '{"integers": 3}'}, "is not a record that moecheck wrote", id="integers"),
        pytest.param({"moecheck": '{"spec": 3}'}, "A spec must be a JSON object", id="a spec that is none"),
        pytest.param({"moecheck": '{"op": "permute"}', "op": True}, "a call of permute, not of fused", id="other op"),
        pytest.param({"moecheck": '{"numerics": {"act": "fp9"}}'}, "Numerics.act='fp9' must be", id="numerics"),
        pytest.param({"moecheck": '{"note": {"a": 1}}'}, "its note is {'a': 1}, which is no text", id="note"),
        pytest.param({"moecheck": '{"tie": "first"}'}, "tie='first' must be 'lowest_index' or None", id="tie"),
        pytest.param({"moecheck": '{"kernel": 5}'}, "its kernel is 5, which is no text", id="kernel"),
        pytest.param({"moecheck": '{"numerics": 3}'}, "numerics do not fit", id="numerics that are none"),
    ],
)  # fmt: skip
def test_a_dump_that_does_not_fit(dump: dict[str, Any], words: str, tmp_path: Path) -> None:
    named = ["--op", "fused_experts"] if "op" in dump else []
    path = by_hand(tmp_path / "a.safetensors", **{name: value for name, value in dump.items() if name != "op"})

    assert words in sentence(moecheck("check", path, *named))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["nowhere"], "nowhere: there is no such file.", id="no file"),
        pytest.param(["."], ".: it is a folder.", id="a folder"),
        pytest.param([], "Missing argument 'DUMP...'", id="no dump"),
        pytest.param(["x", "--op", "fused"], "Unknown op 'fused'. Did you mean 'fused_experts'?", id="op"),
        pytest.param(["x", "--tol", "nan"], "--tol must be a finite number", id="tol"),
        pytest.param(["x", "--spec", "nowhere.json"], "Cannot read --spec nowhere.json", id="no spec file"),
        pytest.param(["x", "--spec", '{"routing": '], "--spec is not complete JSON", id="truncated spec"),
        pytest.param(["x", "--spec", '{"routeing": {}}'], "--spec does not fit: MoESpec has no field", id="spec field"),
        pytest.param(["x", "--format", "xml"], "'xml' is not one of", id="format"),
    ],
)
def test_bad_words(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in sentence(moecheck("check", *arguments))
