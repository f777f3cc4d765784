"""A call of an engine in its own weight layout is judged like any other, once it is put into the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.errors import UsageError
from moecheck.formats import store
from moecheck.references.fused_experts import fused_experts
from moecheck.testing import ExpertSpec, MoeMismatch, WeightLayout, assert_moe_close, inputs_for, plain_inputs
from moecheck.weight_layout import Sizes, to_layout

CASE = Case(op="fused_experts", dtype="fp32", num_tokens=12, hidden_size=40, intermediate_size=24)
LAYOUT = WeightLayout(gate_up="up_first", stacked=True, transposed=True, hidden_multiple=64, intermediate_multiple=32)


def engine_call() -> tuple[dict[str, object], torch.Tensor]:
    """Inputs in the engine's layout as torch tensors, and its padded output."""
    inputs = CASE.inputs()
    out = store(fused_experts(**inputs, spec=CASE.spec.experts), "fp32")
    arranged = to_layout(inputs, LAYOUT, spec=CASE.spec, sizes=Sizes(40, 24))
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arranged.items()}
    return {**tensors, "w13_bias": None}, torch.nn.functional.pad(torch.from_numpy(out), (0, 24))


def test_a_call_in_another_layout_is_judged() -> None:
    inputs, out = engine_call()
    plain = plain_inputs(inputs, LAYOUT, hidden_size=40, intermediate_size=24)
    assert plain.keys() == CASE.inputs().keys()
    assert all(np.array_equal(np.asarray(plain[name]), array) for name, array in CASE.inputs().items())
    assert assert_moe_close(out[:, :40], plain).verdict is Verdict.PASS


def test_taken_for_another_layout_it_fails() -> None:
    inputs, out = engine_call()
    wrong = WeightLayout(gate_up="halves", stacked=True, transposed=True, hidden_multiple=64, intermediate_multiple=32)
    with pytest.raises(MoeMismatch):
        assert_moe_close(out[:, :40], plain_inputs(inputs, wrong, hidden_size=40, intermediate_size=24))


def test_the_spec_says_which_order_is_wanted() -> None:
    inputs, out = engine_call()
    spec = ExpertSpec(gate_up_layout="interleaved")
    plain = plain_inputs(inputs, LAYOUT, hidden_size=40, intermediate_size=24, spec=spec)
    assert not np.array_equal(np.asarray(plain["w13"]), CASE.inputs()["w13"])
    assert assert_moe_close(out[:, :40], plain, spec=spec).verdict is Verdict.PASS


def test_sizes_that_do_not_fit_are_refused() -> None:
    inputs, _ = engine_call()
    with pytest.raises(UsageError, match="hidden_states has 64 entries along axis 1, expected 128"):
        plain_inputs(inputs, LAYOUT, hidden_size=80, intermediate_size=24)
    with pytest.raises(UsageError, match="layout='up_first' must be a moecheck"):
        plain_inputs(inputs, "up_first", hidden_size=40, intermediate_size=24)  # type: ignore[arg-type]  # that is tested


def test_a_cases_inputs_come_in_a_kernels_layout() -> None:
    """The round trip of a test: drawn inputs for the kernel, plain ones for the judgement."""
    arranged = inputs_for(CASE, "numpy", weight_layout=LAYOUT)
    assert arranged["w13"].shape == (8, 2, 64, 32)
    plain = plain_inputs(arranged, LAYOUT, hidden_size=40, intermediate_size=24)
    assert all(np.array_equal(np.asarray(plain[name]), array) for name, array in CASE.inputs().items())
    with pytest.raises(UsageError, match="weight_layout='up_first' must be a moecheck"):
        inputs_for(CASE, "numpy", weight_layout="up_first")  # type: ignore[arg-type]  # that is tested
