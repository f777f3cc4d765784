"""fused_experts, the mathematics: exact fractions, torch float64, GPT-OSS's own expert, sharding and laziness."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from moecheck.formats import AnyArray, to_float64
from moecheck.references.act_and_mul import act_and_mul
from moecheck.references.fused_experts import estimate, fused_experts
from moecheck.references.grouped_gemm import grouped_gemm
from moecheck.references.permute import permute
from moecheck.references.unpermute import unpermute
from moecheck.spec import SWIGLUOAI, ExpertSpec
from tests.bounds import U64, expert_products_bound
from tests.references.drawn import SPECS, Drawn, as_torch, draw, magnitude, torch_token_loop

SHAPE: dict[str, Any] = {"tokens": 13, "experts": 5, "hidden": 24, "intermediate": 12, "top_k": 3}


def assert_close_in_float64(got: AnyArray, expected: AnyArray, case: Drawn, spec: ExpertSpec) -> None:
    bound = expert_products_bound(
        magnitude=magnitude(case, spec),
        hidden_size=case.w2.shape[1],
        intermediate_size=case.w2.shape[2],
        top_k=case.topk_ids.shape[1],
        unit=U64,
    )
    assert got.shape == expected.shape == bound.shape
    assert (np.abs(got - expected) <= bound).all()


def test_relu2_on_integers_is_exact_in_fractions() -> None:
    rng = np.random.default_rng(0)
    spec = ExpertSpec(activation="relu2")
    x, w13, w2 = (rng.integers(-3, 4, size=shape) for shape in ((4, 5), (3, 4, 5), (3, 5, 2)))
    ids = np.array([[0, 2], [1, -1], [2, 1], [-1, -1]])
    weights = rng.integers(1, 8, size=(4, 2)) / 8.0
    b13, b2 = rng.integers(-2, 3, size=(3, 4)), rng.integers(-2, 3, size=(3, 5))
    out = fused_experts(
        hidden_states=x.astype(np.float32),
        w13=w13.astype(np.float32),
        w2=w2.astype(np.float32),
        topk_weights=weights,
        topk_ids=ids,
        spec=spec,
        w13_bias=b13.astype(np.float32),
        w2_bias=b2.astype(np.float32),
    )
    for t in range(4):
        total = [Fraction(0)] * 5
        for e, w in zip(ids[t], weights[t], strict=True):
            if e >= 0:
                pre = [sum(int(a) * int(b) for a, b in zip(row, x[t], strict=True)) for row in w13[e]]
                pre = [p + int(b) for p, b in zip(pre, b13[e], strict=True)]
                h = [max(pre[j], 0) ** 2 * pre[j + 2] for j in range(2)]
                for i in range(5):
                    z = sum(int(w2[e, i, j]) * h[j] for j in range(2)) + int(b2[e, i])
                    total[i] += Fraction(float(w)) * z
        assert [Fraction(float(y)) for y in out[t]] == total


@pytest.mark.parametrize("name", SPECS)
def test_it_is_a_loop_over_tokens_in_torch_float64(name: str) -> None:
    spec = SPECS[name]
    case = draw(**SHAPE, spec=spec, dtype="bf16")
    case.topk_ids[2, 1] = case.topk_ids[5] = -1
    out = fused_experts(**case.kwargs, spec=spec)
    assert_close_in_float64(out, torch_token_loop(case, spec), case, spec)
    np.testing.assert_array_equal(out[5], 0.0)


def test_weight_on_input_is_the_expert_of_w_times_x() -> None:
    spec = ExpertSpec(weight_on_input=True)
    case = draw(**{**SHAPE, "top_k": 1}, spec=spec)
    case.topk_weights[:] = np.linspace(0.1, 2.0, 13)[:, None]
    assert_close_in_float64(fused_experts(**case.kwargs, spec=spec), torch_token_loop(case, spec), case, spec)


def test_gpt_oss_experts_of_transformers_agree() -> None:
    modeling = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    from transformers import GptOssConfig

    case = draw(**SHAPE, spec=SWIGLUOAI)
    config = GptOssConfig(hidden_size=24, intermediate_size=12, num_local_experts=5, num_experts_per_tok=3)
    experts = modeling.GptOssExperts(config).double().eval()
    d = torch.float64
    with torch.no_grad():
        experts.gate_up_proj.copy_(as_torch(case.w13, d).transpose(1, 2))
        experts.down_proj.copy_(as_torch(case.w2, d).transpose(1, 2))
        assert case.w13_bias is not None
        assert case.w2_bias is not None
        experts.gate_up_proj_bias.copy_(as_torch(case.w13_bias, d))
        experts.down_proj_bias.copy_(as_torch(case.w2_bias, d))
        x, ids = as_torch(case.hidden_states, d), torch.from_numpy(case.topk_ids.astype(np.int64))
        theirs = experts(x, ids, as_torch(case.topk_weights, d)).reshape(13, 24).numpy()
    assert_close_in_float64(fused_experts(**case.kwargs, spec=SWIGLUOAI), theirs, case, SWIGLUOAI)


def test_the_plumbing_ops_put_together_are_the_same() -> None:
    case = draw(**SHAPE, spec=ExpertSpec())
    rows, _, starts, inverse = permute(hidden_states=case.hidden_states, topk_ids=case.topk_ids, num_experts=5)
    h = act_and_mul(x=grouped_gemm(x=rows, w=case.w13, expert_ends=starts[1:]), spec=ExpertSpec())
    z = grouped_gemm(x=h, w=case.w2, expert_ends=starts[1:])
    out = unpermute(permuted=z, topk_weights=case.topk_weights, inv_permuted_idx=inverse)
    assert_close_in_float64(fused_experts(**case.kwargs, spec=ExpertSpec()), out, case, ExpertSpec())


def test_expert_parallel_shards_sum_to_the_whole() -> None:
    spec = SWIGLUOAI
    case = draw(**SHAPE, spec=spec)
    total = np.zeros(case.hidden_states.shape)
    for local in ([0, 3], [1], [4, 2]):
        expert_map = np.full(5, -1, dtype=np.int32)
        expert_map[local] = np.arange(len(local))
        stacks = {name: case.kwargs[name][local] for name in ("w13", "w2", "w13_bias", "w2_bias")}
        total += fused_experts(**{**case.kwargs, **stacks}, spec=spec, expert_map=expert_map)
    assert_close_in_float64(fused_experts(**case.kwargs, spec=spec), total, case, spec)


def test_a_token_s_result_is_its_own() -> None:
    case = draw(**SHAPE, spec=ExpertSpec())
    whole = fused_experts(**case.kwargs, spec=ExpertSpec())
    case.hidden_states[4] = np.nan
    poisoned = fused_experts(**case.kwargs, spec=ExpertSpec())
    others = np.arange(13) != 4
    assert np.isnan(poisoned[4]).all()
    np.testing.assert_array_equal(poisoned[others], whole[others])


def test_lazy_weights_are_asked_for_once_in_order_and_only_where_there_are_rows() -> None:
    case = draw(**SHAPE, spec=ExpertSpec())
    case.topk_ids[:] = np.where(case.topk_ids == 3, -1, case.topk_ids)
    asked: list[int] = []

    class Lazy:
        shape = case.w13.shape

        def __getitem__(self, expert: int, /) -> AnyArray:
            asked.append(expert)
            return to_float64(case.w13[expert])

    whole = fused_experts(**case.kwargs, spec=ExpertSpec())
    lazy = fused_experts(**{**case.kwargs, "w13": Lazy()}, spec=ExpertSpec())
    np.testing.assert_array_equal(lazy, whole)
    assert asked == [0, 1, 2, 4]


def test_an_expert_with_more_rows_than_a_block_is_computed_whole() -> None:
    case = draw(tokens=600, experts=2, hidden=8, intermediate=4, top_k=2, spec=ExpertSpec())
    one_by_one = np.concatenate(
        [
            fused_experts(
                **{
                    **case.kwargs,
                    **{n: case.kwargs[n][t : t + 1] for n in ("hidden_states", "topk_weights", "topk_ids")},
                },
                spec=ExpertSpec(),
            )
            for t in range(600)
        ]
    )
    assert_close_in_float64(fused_experts(**case.kwargs, spec=ExpertSpec()), one_by_one, case, ExpertSpec())


def test_one_expert_named_twice_counts_twice() -> None:
    case = draw(**SHAPE, spec=ExpertSpec())
    case.topk_ids[:] = case.topk_ids[:, :1]
    expected = torch_token_loop(case, ExpertSpec())
    assert_close_in_float64(fused_experts(**case.kwargs, spec=ExpertSpec()), expected, case, ExpertSpec())


def test_no_tokens_give_no_rows() -> None:
    case = draw(**{**SHAPE, "tokens": 0}, spec=ExpertSpec())
    assert fused_experts(**case.kwargs, spec=ExpertSpec()).shape == (0, 24)
    assert estimate(**case.kwargs, spec=ExpertSpec()).sigma.shape == (0, 24)
