"""Experts on rows that lie expert by expert, in PyTorch, against their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moecheck.formats import to_float64
from moecheck.kernels.torch import batched, plan
from moecheck.references.batched_experts import estimate
from moecheck.references.expert_counts import expert_counts
from moecheck.spec import SWIGLUOAI, ExpertSpec
from tests.kernels.experts_case import ExpertsCase, declaration, worst_z, z_bound
from tests.kernels.plumbing import ids_and_map
from tests.kernels.torch_bridge import numpy_call

DTYPES = ("fp32", "fp16", "bf16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(ExpertsCase(), id="eight experts"),
        pytest.param(ExpertsCase(tokens=0), id="no token"),
        pytest.param(ExpertsCase(tokens=2, experts=60, top_k=4, padding=True), id="most experts are empty"),
        pytest.param(ExpertsCase(expert_map=True, padding=True), id="half of the experts are elsewhere"),
        pytest.param(ExpertsCase(hidden=90, intermediate=44, spec=SWIGLUOAI), id="swigluoai with odd sizes"),
    ],
)
def test_the_sum_over_batched_rows(case: ExpertsCase, dtype: str) -> None:
    kernel = batched.fused_experts
    inputs = case.inputs(dtype)
    out = numpy_call(kernel)(**inputs, spec=case.spec)
    assert out.dtype == inputs["hidden_states"].dtype
    assert worst_z(out, inputs, case=case, kernel=kernel, dtype=dtype) <= z_bound(out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", [ExpertSpec(), SWIGLUOAI], ids=["silu", "swigluoai"])
def test_rows_beyond_the_counts_hold_anything(spec: ExpertSpec, dtype: str) -> None:
    case = ExpertsCase(tokens=24, experts=4, spec=spec)
    counts = np.array([6, 0, 1, 4], np.int32)
    inputs: dict[str, Any] = {n: a for n, a in case.inputs(dtype).items() if n not in ("topk_ids", "topk_weights")}
    x = inputs["hidden_states"].reshape(4, 6, -1).copy()
    held = np.arange(6) < counts[:, None]
    x[~held] = np.nan
    inputs |= {"hidden_states": x, "expert_counts": counts}
    out = numpy_call(batched.batched_experts)(**inputs, spec=spec)
    value, sigma = estimate(**inputs, spec=spec, numerics=declaration(batched.batched_experts).numerics, dtype=dtype)
    error = np.abs(to_float64(out[held]) - value[held.reshape(-1)])
    assert out.shape == x.shape
    assert (error <= z_bound(out[held]) * sigma[held.reshape(-1)]).all()


@pytest.mark.parametrize("mapped", [False, True], ids=["all here", "half of them"])
@pytest.mark.parametrize("tokens", [0, 1, 17])
def test_counts(tokens: int, mapped: bool) -> None:
    ids, expert_map = ids_and_map(tokens=tokens, experts=9, top_k=3, mapped=mapped)
    arrays = {"topk_ids": ids} | ({} if expert_map is None else {"expert_map": expert_map})
    got = numpy_call(plan.expert_counts)(**arrays, num_experts=9)
    assert got.dtype == np.int32
    assert np.array_equal(got, expert_counts(**arrays, num_experts=9))
