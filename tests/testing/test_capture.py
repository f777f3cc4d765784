"""A captured call comes back bit for bit, from every framework, and a file is whole or not there."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open

from moecheck.errors import UsageError
from moecheck.ops import OPS
from moecheck.testing import Numerics, capture
from moecheck.testing.dump import Dump, read_dump
from moecheck.testing.tensor_file import open_tensors
from tests.testing.calls import DTYPES, FRAMEWORKS, native, right_outputs, small_case


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_survives(framework: str, dtype: str, tmp_path: Path) -> None:
    case = small_case(dtype=dtype)
    inputs, (out,) = case.inputs(), right_outputs(case)
    path = capture(tmp_path / "a.safetensors", inputs=native(inputs, framework), output=native(out, framework))
    dump = read_dump(path)

    assert dump.outputs[0].tobytes() == out.tobytes()
    for name, array in inputs.items():
        found = dump.given.inputs[name]
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("op", list(OPS))
def test_every_op_comes_back(op: str, tmp_path: Path) -> None:
    case = small_case(op)
    numerics = Numerics(topk_weights="input")
    path = capture(
        tmp_path / "new" / "a.safetensors",
        op=op,
        inputs=case.inputs(),
        output=right_outputs(case),
        spec=case.spec,
        kernel="mine",
        numerics=numerics,
        note="layer 3",
    )
    dump = read_dump(path)

    assert (dump.kernel, dump.numerics, dump.note, dump.unused) == ("mine", numerics, "layer 3", ())
    assert dump.given.case.op == op
    assert dump.given.case.spec.experts == case.spec.experts
    if "router_logits" in dump.given.inputs:
        assert dump.given.case.spec.routing == case.spec.routing
    assert [out.tobytes() for out in dump.outputs] == [out.tobytes() for out in right_outputs(case)]


@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_what_lies_apart_or_across_in_memory_is_written_in_order(framework: str, tmp_path: Path) -> None:
    case = small_case(layout="strided")
    inputs = native(case.inputs(), framework)
    inputs["w2"] = native(np.ascontiguousarray(case.inputs()["w2"].transpose(0, 2, 1)), framework)
    inputs["w2"] = inputs["w2"].transpose(1, 2) if framework == "torch" else inputs["w2"].transpose(0, 2, 1)
    dump = read_dump(capture(tmp_path / "a.safetensors", inputs=inputs, output=right_outputs(case)[0]))

    np.testing.assert_array_equal(dump.given.inputs["w2"], case.inputs()["w2"])
    np.testing.assert_array_equal(dump.given.inputs["hidden_states"], case.inputs()["hidden_states"])


def test_no_tokens_are_captured_too(tmp_path: Path) -> None:
    inputs = small_case(num_tokens=0).inputs()
    dump = read_dump(capture(tmp_path / "a.safetensors", inputs=inputs, output=np.zeros((0, 64), ml_dtypes.bfloat16)))
    assert dump.outputs[0].shape == (0, 64)


def test_a_tensor_that_wants_its_gradient_is_captured(tmp_path: Path) -> None:
    inputs = native(small_case(dtype="fp32").inputs(), "torch")
    inputs["w13"].requires_grad_()
    capture(tmp_path / "a.safetensors", inputs=inputs, output=torch.ones(12, 64, requires_grad=True))


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    case = small_case()
    path = tmp_path / "a.safetensors"
    for note in ("first", "second"):
        capture(path, inputs=case.inputs(), output=right_outputs(case)[0], note=note)
    assert read_dump(path).note == "second"
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    other.unlink()
    assert list(tmp_path.iterdir()) == [path]


def test_only_tensors_that_are_used_are_read(tmp_path: Path) -> None:
    """A mapped tensor is a window on the file, not a copy of it."""
    case = small_case()
    path = capture(tmp_path / "a.safetensors", inputs=case.inputs(), output=right_outputs(case)[0])
    tensor = open_tensors(path).tensor("w13")
    while isinstance(tensor.base, np.ndarray):
        tensor = tensor.base
    assert isinstance(tensor, np.memmap)
    assert not open_tensors(path).tensor("w13").flags.writeable


def test_others_can_read_it(tmp_path: Path) -> None:
    case = small_case()
    path = capture(tmp_path / "a.safetensors", inputs=case.inputs(), output=right_outputs(case)[0])
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == sorted([*case.inputs(), "out"])
        assert torch.equal(file.get_tensor("w13"), native(case.inputs()["w13"], "torch"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"output": None}, "out must be a torch, jax or NumPy array", id="no output"),
        pytest.param({"output": (1, 2)}, "has 1 outputs", id="too many outputs"),
        pytest.param({"op": "fused_expert"}, "Did you mean 'fused_experts'", id="op"),
        pytest.param({"op": 3}, "op=3 must be text", id="an op that is no text"),
        pytest.param({"note": 3}, "note=3 must be text", id="a note that is no text"),
        pytest.param({"kernel": {"a": 1}}, "kernel={'a': 1} must be text", id="a kernel that is no text"),
        pytest.param({"numerics": {"gate_up": "bf16"}}, "numerics={.* must be a moecheck.Numerics", id="numerics"),
        pytest.param({"numerics": "identify"}, "numerics='identify' must be a moecheck.Num", id="numerics in words"),
        pytest.param({"inputs": [1]}, "must be a dict of the op's arguments by name, not list", id="a list of inputs"),
        pytest.param({"inputs": {1: 2}}, "1 is no name of an argument", id="a number as name"),
        pytest.param({"inputs": {}}, "Which op takes no arguments", id="no inputs"),
    ],
)
def test_what_could_not_be_judged_is_not_captured(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    case = small_case()
    arguments: dict[str, Any] = {"inputs": case.inputs(), "output": right_outputs(case)[0], **change}
    with pytest.raises(UsageError, match=words):
        capture(tmp_path / "a.safetensors", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_none() -> None:
    with pytest.raises(UsageError, match="path=3 must be the name of a file"):
        capture(3, inputs=small_case().inputs(), output=None)  # type: ignore[arg-type]  # that is the point


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    case = small_case()
    with pytest.raises(UsageError, match="Cannot write"):
        capture(tmp_path / "file" / "a.safetensors", inputs=case.inputs(), output=right_outputs(case)[0])


def test_a_copy_that_nobody_installed_captures_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("moecheck.testing.dump.version", absent)
    case = small_case()
    read_dump(capture(tmp_path / "a.safetensors", inputs=case.inputs(), output=right_outputs(case)[0]))


def test_a_dump_is_a_record() -> None:
    assert Dump.__dataclass_params__.frozen  # type: ignore[attr-defined]  # typeshed keeps it private
