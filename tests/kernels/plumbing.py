"""Checks of the ops between the GEMMs, the same for every backend: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moecheck import ExpertSpec, Numerics
from moecheck.formats import AnyArray, store, to_float64
from moecheck.references import act_and_mul, align_block_size, grouped_gemm, permute, problem_sizes, unpermute
from tests.bounds import largest_z

Call = Callable[..., Any]


def ids_and_map(*, tokens: int, experts: int, top_k: int, mapped: bool) -> tuple[AnyArray, AnyArray | None]:
    """topk_ids [T, top_k] with some -1, and a map that leaves every other expert here, in reverse order, or None."""
    rng = np.random.default_rng(tokens + experts)
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].astype(np.int32)
    ids[::4, -1] = -1
    if not mapped:
        return ids, None
    expert_map = np.full(experts, -1, dtype=np.int32)
    expert_map[::2] = np.arange((experts + 1) // 2, dtype=np.int32)[::-1]
    return ids, expert_map


def check_permute(call: Call, *, tokens: int, experts: int, mapped: bool, dtype: str) -> None:
    ids, expert_map = ids_and_map(tokens=tokens, experts=experts, top_k=3, mapped=mapped)
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {"hidden_states": store(rng.normal(size=(tokens, 44)), dtype), "topk_ids": ids}
    if mapped:
        arrays |= {"expert_map": expert_map}
    permuted, scale, starts, inverse = call(**arrays, num_experts=experts)
    expected = permute.permute(**arrays, num_experts=experts)
    used = int(expected[2][-1])
    assert scale is None
    assert permuted.shape == expected[0].shape
    assert permuted.dtype == arrays["hidden_states"].dtype
    assert np.array_equal(to_float64(permuted[:used]), expected[0][:used])
    assert np.array_equal(starts, expected[2])
    assert np.array_equal(inverse, expected[3])


def check_unpermute(call: Call, *, tokens: int, dtype: str, numerics: Numerics | None) -> None:
    ids, _ = ids_and_map(tokens=tokens, experts=8, top_k=3, mapped=False)
    rng = np.random.default_rng(2)
    inverse = np.where(ids >= 0, rng.permutation(ids.size).reshape(ids.shape), -1).astype(np.int32)
    arrays: dict[str, Any] = {
        "permuted": store(rng.normal(size=(ids.size, 44)), dtype),
        "topk_weights": rng.random(ids.shape).astype(np.float32),
        "inv_permuted_idx": inverse,
    }
    unused = np.setdiff1d(np.arange(ids.size), inverse)
    arrays["permuted"][unused] = np.nan  # rows without a slot are never read
    out = call(**arrays)
    value, sigma = unpermute.estimate(**arrays, numerics=numerics, dtype=dtype)
    _within(out, value, sigma, dtype=arrays["permuted"].dtype)


def check_align_block_size(call: Call, *, tokens: int, experts: int, block_size: int, mapped: bool) -> None:
    ids, expert_map = ids_and_map(tokens=tokens, experts=experts, top_k=3, mapped=mapped)
    arrays: dict[str, Any] = {"topk_ids": ids} | ({"expert_map": expert_map} if mapped else {})
    got = call(**arrays, block_size=block_size, num_experts=experts)
    expected = align_block_size.align_block_size(**arrays, block_size=block_size, num_experts=experts)
    assert all(np.array_equal(a, b) and a.dtype == np.int32 for a, b in zip(got, expected, strict=True))


def check_problem_sizes(call: Call, *, tokens: int, experts: int, mapped: bool) -> None:
    ids, expert_map = ids_and_map(tokens=tokens, experts=experts, top_k=3, mapped=mapped)
    arrays: dict[str, Any] = {"topk_ids": ids} | ({"expert_map": expert_map} if mapped else {})
    sizes: dict[str, Any] = {"num_experts": experts, "intermediate_size": 48, "hidden_size": 64}
    got, expected = call(**arrays, **sizes), problem_sizes.problem_sizes(**arrays, **sizes)
    assert all(np.array_equal(a, b) and a.dtype == np.int32 for a, b in zip(got, expected, strict=True))


def check_grouped_gemm(call: Call, *, counts: list[int], tail: int, dtype: str, numerics: Numerics | None) -> None:
    rng = np.random.default_rng(3)
    ends = np.cumsum(counts).astype(np.int32)
    arrays: dict[str, Any] = {
        "x": store(rng.normal(size=(int(ends[-1]) + tail, 64)), dtype),
        "w": store(rng.normal(size=(len(counts), 48, 64)) / 8, dtype),
        "expert_ends": ends,
    }
    out = call(**arrays)
    value, sigma = grouped_gemm.estimate(**arrays, numerics=numerics, dtype=dtype)
    assert out.shape == value.shape
    _within(out[: ends[-1]], value[: ends[-1]], sigma[: ends[-1]], dtype=arrays["x"].dtype)


def check_act_and_mul(call: Call, spec: ExpertSpec, *, rows: int, dtype: str, numerics: Numerics | None) -> None:
    x = store(np.random.default_rng(4).normal(size=(rows, 88)) * 3, dtype)
    value, sigma = act_and_mul.estimate(x=x, spec=spec, numerics=numerics, dtype=dtype)
    _within(call(x=x, spec=spec), value, sigma, dtype=x.dtype)


def _within(out: AnyArray, value: AnyArray, sigma: AnyArray, *, dtype: Any) -> None:
    assert out.dtype == dtype
    assert out.shape == value.shape
    assert np.all(np.abs(to_float64(out) - value) <= largest_z(max(1, out.size)) * sigma)
