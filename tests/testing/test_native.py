"""A case's inputs in every framework hold the bits that the reference reads."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from moecheck.errors import UsageError
from moecheck.runner.arrays import to_numpy
from moecheck.testing import inputs_for
from moecheck.testing.native import Framework
from tests.testing.calls import DTYPES, small_case


@pytest.mark.parametrize("framework", ["torch", "jax", "numpy"])
@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits(framework: Framework, device: str | None, dtype: str) -> None:
    case = small_case(dtype=dtype)
    for name, value in inputs_for(case, framework, device).items():
        assert to_numpy(value).tobytes() == case.inputs()[name].tobytes()


def test_integers_stay_integers() -> None:
    assert inputs_for(small_case("align_block_size"), "jax")["block_size"] == 16


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")], ids=str)
def test_wide_rows_stay_wide(device: object) -> None:
    rows = inputs_for(small_case(layout="strided"), "torch", device)["hidden_states"]
    assert (tuple(rows.shape), rows.stride()) == ((12, 64), (96, 1))


def test_a_test_may_write_into_them() -> None:
    case = small_case()
    inputs_for(case, "torch")["w13"].zero_()
    assert np.count_nonzero(inputs_for(case, "numpy")["w13"])


def test_an_unknown_framework_gets_the_near_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'torch'"):
        inputs_for(small_case(), "touch")  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("case", "framework", "words"),
    [(3, "torch", "case=3 must be a moecheck.testing.Case"), (small_case(), 3, "framework=3 must be text")],
)
def test_what_is_no_case_or_framework_is_refused(case: Any, framework: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inputs_for(case, framework)


def test_numpy_has_no_devices() -> None:
    with pytest.raises(UsageError, match="no device 'cuda'"):
        inputs_for(small_case(), "numpy", "cuda")


def test_a_framework_that_lacks_a_part_of_its_own_is_another_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'jaxlib'", name="jaxlib")

    monkeypatch.setattr("moecheck.testing.native.to_native", broken)
    with pytest.raises(ModuleNotFoundError, match="jaxlib"):
        inputs_for(small_case(), "jax")


def test_a_missing_framework_gets_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(UsageError, match=r"pip install 'moecheck\[jax\]'"):
        inputs_for(small_case(), "jax", "cpu")
