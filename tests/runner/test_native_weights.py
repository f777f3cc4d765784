"""Weights of full-size cases as a kernel gets them: the drawn ones, arranged as it declares, and watched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.quantization import SCHEMES
from moecheck.runner.arrays import to_numpy
from moecheck.runner.layout import in_layout
from moecheck.runner.native_weights import NativeWeights
from moecheck.runner.target import Target
from moecheck.runner.worker import run_all_tokens, run_case
from moecheck.sampled_inputs import lazy_inputs
from moecheck.spec import ExpertSpec, MoESpec
from moecheck.weight_layout import WeightLayout

CASE = Case(op="fused_experts", num_tokens=40, num_experts=6, hidden_size=64, intermediate_size=32, sampled=8)
BLOCKS = replace(CASE, spec=MoESpec(experts=ExpertSpec(quantization=SCHEMES["fp8-block"])))
LAYOUTS = (None, WeightLayout(transposed=True), WeightLayout(gate_up="interleaved", hidden_multiple=48))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["plain", "transposed", "interleaved and padded"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("case", [CASE, BLOCKS], ids=["bf16", "fp8"])
def test_a_kernel_gets_the_cases_own_weights(case: Case, backend: str, layout: WeightLayout | None) -> None:
    """Expert by expert, as if all had been arranged together."""
    if case is BLOCKS and layout == LAYOUTS[2]:
        pytest.skip("gate and up share scales")
    weights = NativeWeights(case, lazy_inputs(case), backend, layout)
    expected = case.inputs() if layout is None else in_layout(case, case.inputs(), layout)
    assert set(weights.arrays) == {name for name in expected if name.startswith("w")}
    for name, array in weights.arrays.items():
        got = to_numpy(array)
        assert got.dtype == expected[name].dtype
        assert got.tobytes() == np.ascontiguousarray(expected[name]).tobytes()
    assert weights.changed() == []


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_written_weight_is_noticed(backend: str) -> None:
    """Also where the sum stays the same: two blocks change places."""
    weights = NativeWeights(CASE, lazy_inputs(CASE), backend, None)
    w2 = weights.arrays["w2"]
    w2[3, :16], w2[3, 16:32] = w2[3, 16:32] + 0, w2[3, :16] + 0
    assert weights.changed() == ["w2"]


KERNEL = """
import moecheck
from moecheck.kernels.torch.index_add import fused_experts as index_add

def right(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    return index_add(
        hidden_states=hidden_states, w13=w13, w2=w2, topk_weights=topk_weights, topk_ids=topk_ids, spec=spec
    )

def shuffles_its_weights(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    out = right(
        hidden_states=hidden_states, w13=w13, w2=w2, topk_weights=topk_weights, topk_ids=topk_ids, spec=spec
    )
    w13[0] = w13[0].flip(0)
    return out
"""


@pytest.mark.parametrize(("name", "modified"), [("right", ()), ("shuffles_its_weights", ("w13",))])
def test_a_call_on_a_sampled_case(name: str, modified: tuple[str, ...], tmp_path: Path) -> None:
    """With the further calls on all of its tokens; weights that were written are drawn again for the next call."""
    file = tmp_path / "mine.py"
    file.write_text(KERNEL, encoding="utf-8")
    target = Target(spec_string=f"{file}:{name}", op="fused_experts", backend="torch")
    first = run_case(target, CASE)
    assert first.problem is None
    assert first.modified == modified
    again = run_case(target, CASE)
    assert again.outputs[0].tobytes() == first.outputs[0].tobytes()
    crowd, order = run_all_tokens(target, CASE)
    assert crowd.problem is None or crowd.problem[0] is not Verdict.SKIP
    assert order.outputs[0].shape == first.outputs[0].shape
