"""expert_outputs: what fused_experts adds up, slot by slot, against torch in float64 and rounded as torch rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # its name everywhere

from moecheck.formats import Float64, to_float64
from moecheck.numerics import Numerics
from moecheck.references.expert_outputs import estimate, expert_outputs
from moecheck.references.fused_experts import fused_experts
from tests.bounds import AGREEMENT, BLOCKED_RMS, CALIBRATED_RMS, U64, expert_products_bound, z_limit
from tests.references.drawn import SPECS, TORCH_DTYPES, Drawn, as_torch, draw, torch_activation, torch_token_loop

TOKENS, EXPERTS, HIDDEN, INTERMEDIATE, TOP_K = 14, 6, 32, 16, 3
STORED = Numerics(gate_up="input", act_times_up="input", per_expert="input")


def drawn(name: str, *, dtype: str = "fp32", tokens: int = TOKENS) -> Drawn:
    sizes = {"experts": EXPERTS, "hidden": HIDDEN, "intermediate": INTERMEDIATE, "top_k": TOP_K}
    return draw(tokens=tokens, **sizes, spec=SPECS[name], dtype=dtype)


def call(case: Drawn) -> dict[str, Any]:
    """The op's arguments: all but the weights."""
    return {key: value for key, value in case.kwargs.items() if key != "topk_weights"}


def eager(case: Drawn, name: str, dtype: str) -> Float64:
    """Each slot's expert in torch, every intermediate a tensor of `dtype`: [T, k, H]."""
    d = TORCH_DTYPES[dtype]
    rows = []
    for t, s in np.ndindex(case.topk_ids.shape):
        e = int(case.topk_ids[t, s])
        bias: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if case.w13_bias is not None and case.w2_bias is not None:
            bias = (as_torch(case.w13_bias[e], d), as_torch(case.w2_bias[e], d))
        gate_up = F.linear(as_torch(case.hidden_states[t : t + 1], d), as_torch(case.w13[e], d), bias[0])
        h = torch_activation(gate_up.float(), SPECS[name]).to(d)
        rows.append(F.linear(h, as_torch(case.w2[e], d), bias[1]))
    return torch.cat(rows).double().numpy().reshape(*case.topk_ids.shape, HIDDEN)


@pytest.mark.parametrize("name", SPECS)
def test_each_slot_is_torch_s_expert(name: str) -> None:
    case = drawn(name)

    y = expert_outputs(**call(case), spec=SPECS[name])

    for slot in range(TOP_K):
        alone = case._replace(topk_ids=case.topk_ids[:, [slot]], topk_weights=np.ones((TOKENS, 1), dtype=np.float32))
        expected = torch_token_loop(alone, SPECS[name])
        size = np.abs(expected).max(axis=1, keepdims=True) + np.abs(to_float64(case.hidden_states)).max()
        bound = expert_products_bound(
            magnitude=64.0 * size, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, top_k=1, unit=U64
        )
        assert (np.abs(y[:, slot] - expected) <= bound).all()


def test_its_weighted_sum_is_fused_experts() -> None:
    case = drawn("swigluoai")
    y = expert_outputs(**call(case), spec=SPECS["swigluoai"])
    total = (y * to_float64(case.topk_weights)[..., None]).sum(axis=1)
    whole = fused_experts(**case.kwargs, spec=SPECS["swigluoai"])
    size = (np.abs(y) * to_float64(case.topk_weights)[..., None]).sum(axis=1)
    assert (np.abs(total - whole) <= 2 * TOP_K * U64 * size).all()


def test_slots_without_an_expert_are_undefined_and_change_no_other() -> None:
    case = drawn("silu")
    whole = expert_outputs(**call(case), spec=SPECS["silu"])
    ids, local = case.topk_ids.copy(), np.array([-1, 0, 1, -1, 2, -1], dtype=np.int32)
    ids[2, 1] = -1
    here = {"w13": case.w13[[1, 2, 4]], "w2": case.w2[[1, 2, 4]]}

    y = expert_outputs(**{**call(case), **here}, spec=SPECS["silu"], expert_map=local)
    masked = expert_outputs(**{**call(case), "topk_ids": ids}, spec=SPECS["silu"])

    foreign = local[case.topk_ids] < 0
    assert np.isnan(y[foreign]).all()
    np.testing.assert_array_equal(y[~foreign], whole[~foreign])
    assert np.isnan(masked[2, 1]).all()
    assert not np.isnan(masked[2, 0]).any()


def test_rounding_at_every_stage_is_that_of_bf16_torch() -> None:
    case = drawn("silu", dtype="bf16", tokens=128)
    out = eager(case, "silu", "bf16")
    reference = expert_outputs(**call(case), spec=SPECS["silu"], numerics=STORED)
    assert np.mean(out == reference) >= AGREEMENT
    value, sigma = estimate(**call(case), spec=SPECS["silu"], numerics=STORED)
    z = (out.reshape(value.shape) - value) / sigma
    assert CALIBRATED_RMS[0] <= np.sqrt(np.mean(z**2)) <= CALIBRATED_RMS[1]
    assert np.abs(z).max() <= z_limit(z.size)


def test_sigma_of_fp32_torch() -> None:
    case = drawn("silu", tokens=128)
    value, sigma = estimate(**call(case), spec=SPECS["silu"])
    z = (eager(case, "silu", "fp32").reshape(value.shape) - value) / sigma
    assert BLOCKED_RMS[0] <= np.sqrt(np.mean(z**2)) <= BLOCKED_RMS[1]
    assert np.abs(z).max() <= z_limit(z.size)
