"""Extreme inputs and wrong outputs are judged without a warning, which would end a test that runs with -W error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from moecheck.checks.judge import Limits, judge
from moecheck.formats import AnyArray, to_float64
from moecheck.identify import identify
from moecheck.ops import OPS
from moecheck.oracle import Oracle
from moecheck.testing import MoeMismatch, assert_moe_close, capture, inputs_for
from moecheck.testing.given import Given, given
from tests.testing.calls import right_outputs, small_case

FLOATING = [op for op in OPS if any(arg.kind == "input" for arg in OPS[op].args)]
EXTREMES = {
    "a NaN row": lambda a: _first_row(a, np.nan),
    "an infinite row": lambda a: _first_row(a, np.inf),
    "1e4 times": lambda a: _times(a, 1e4),
    "1e20 times": lambda a: _times(a, 1e20),
    "1e-40 times": lambda a: _times(a, 1e-40),
}


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    """Every warning raises, as by pytest's -W error, with what NumPy warns of by default."""
    with warnings.catch_warnings(), np.errstate(divide="warn", over="warn", invalid="warn"):
        warnings.simplefilter("error")
        yield


def _first_row(array: AnyArray, value: float) -> AnyArray:
    changed = array.copy()
    changed[:1] = value
    return changed


def _times(array: AnyArray, factor: float) -> AnyArray:
    with np.errstate(all="ignore"):
        return (to_float64(array) * factor).astype(array.dtype)


def extreme_inputs(op: str, change: Any) -> dict[str, Any]:
    """A small case's inputs with one argument changed, the first that has a float per row."""
    inputs = dict(small_case(op).inputs())
    name = next(arg.name for arg in OPS[op].args if arg.kind == "input" and arg.name in inputs)
    return {**inputs, name: change(inputs[name])}


def described(op: str, change: Any) -> Given:
    return given(extreme_inputs(op, change), op=op, spec=small_case(op).spec)


@pytest.mark.parametrize("change", EXTREMES.values(), ids=EXTREMES.keys())
@pytest.mark.parametrize(
    ("op", "numerics"), [*((op, None) for op in FLOATING), ("fused_experts", "identify"), ("grouped_gemm", "identify")]
)
def test_extreme_inputs_warn_nobody(op: str, change: Any, numerics: Any) -> None:
    """Whatever the verdict on outputs that belong to other inputs: it is said, with its diagnosis and picture."""
    case, found = small_case(op), None
    try:
        assert_moe_close(right_outputs(case), extreme_inputs(op, change), op=op, spec=case.spec, numerics=numerics)
    except MoeMismatch as mismatch:
        found = mismatch
    if found is not None:
        assert str(found)
        found.examined.picture("")


@pytest.mark.parametrize("change", EXTREMES.values(), ids=EXTREMES.keys())
def test_extreme_outputs_warn_nobody(change: Any) -> None:
    case = small_case()
    wrong = change(right_outputs(case)[0])
    with pytest.raises(MoeMismatch) as caught:
        assert_moe_close(wrong, case, numerics="identify")
    assert str(caught.value)
    caught.value.examined.picture("")


def test_a_call_with_nans_is_captured_in_silence(tmp_path: Any) -> None:
    inputs = extreme_inputs("fused_experts", EXTREMES["a NaN row"])
    capture(tmp_path / "a.safetensors", inputs=inputs, output=right_outputs(small_case())[0])


def test_drawing_extreme_inputs_warns_nobody() -> None:
    inputs_for(small_case(dtype="fp16", stratum="outlier"), "numpy")


@pytest.mark.parametrize("change", EXTREMES.values(), ids=EXTREMES.keys())
@pytest.mark.parametrize("op", FLOATING)
def test_judging_for_the_runner_warns_nobody(op: str, change: Any) -> None:
    call, outputs = described(op, change), right_outputs(small_case(op))
    assert judge(call.case, outputs, call.oracle(), Limits(), None).judgements


@pytest.mark.parametrize("change", EXTREMES.values(), ids=EXTREMES.keys())
def test_identifying_for_the_runner_warns_nobody(change: Any) -> None:
    call = described("fused_experts", change)
    assert identify([(call.case, right_outputs(small_case())[0])], Oracle(load=lambda _: call.inputs)).elements >= 0
