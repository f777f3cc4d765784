"""expert_parallel_moe: ranks, places and shares change nothing; what rounding of the sum of a rank does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, verdict_of
from moecheck.checks.judge import Limits, judge
from moecheck.curated import cases_for
from moecheck.errors import CaseError, UsageError
from moecheck.formats import AnyArray, store, to_float64
from moecheck.kernel import describe
from moecheck.numerics import INPUT, CombineOrder, Numerics
from moecheck.oracle import Oracle
from moecheck.quantization import SCHEMES
from moecheck.quantized_inputs import dequantised
from moecheck.references.expert_parallel_moe import expert_parallel_moe, ranks_of_experts, tokens_of_ranks
from moecheck.references.fused_experts import fused_experts
from moecheck.references.moe_layer import moe_layer
from moecheck.references.topk_routing import topk_routing
from moecheck.spec import MoESpec, RoutingSpec

OP = "expert_parallel_moe"
NAMED = {case.name: case for case in cases_for(OP, profile="quick", seed=0) if case.name}
OF_RANKS = ("num_ranks", "rank_tokens", "expert_placement")
ORACLE = Oracle()
BY_RANK = Numerics(combine=INPUT, combine_order="rank")


def rounding(case: Case, numerics: Numerics) -> Any:
    return expert_parallel_moe(**case.inputs(), spec=case.spec, numerics=numerics)


def kernel_of_ranks(case: Case, *, partial: str) -> AnyArray:
    """Each rank's experts in float64, its sum stored in the format `partial`, and these added up and stored."""
    inputs = case.inputs()
    weights, ids = topk_routing(
        router_logits=inputs["router_logits"],
        spec=case.spec.routing,
        correction_bias=inputs.get("correction_bias"),
    )
    owner = ranks_of_experts(case.num_experts, case.num_ranks, inputs.get("expert_placement"))
    total = np.zeros((case.num_tokens, case.hidden_size))
    for rank in range(case.num_ranks):
        part = fused_experts(
            hidden_states=inputs["hidden_states"],
            w13=inputs["w13"],
            w2=inputs["w2"],
            w13_bias=inputs.get("w13_bias"),
            w2_bias=inputs.get("w2_bias"),
            topk_weights=weights,
            topk_ids=np.where(owner[ids] == rank, ids, -1),
            spec=case.spec.experts,
        )
        total += to_float64(store(part, partial))
    return store(total, case.dtype)


@pytest.mark.parametrize("name", list(NAMED))
def test_it_is_the_layer_wherever_tokens_and_experts_lie(name: str) -> None:
    case = NAMED[name]
    inputs = case.inputs()
    whole = {key: value for key, value in inputs.items() if key not in OF_RANKS}

    out = expert_parallel_moe(**inputs, spec=case.spec)

    values = ORACLE.values(case, Numerics(out="fp32"))  # fp32's rounding is far above float64's
    assert (np.abs(out - moe_layer(**whole, spec=case.spec)) <= values.sigma).all()


@pytest.mark.parametrize("name", ["plain-bf16", "four-experts-each", "outliers", "shuffled-placement"])
def test_a_kernel_that_stores_each_ranks_sum_passes_by_its_contract_and_not_by_another(name: str) -> None:
    case = replace(NAMED[name], dtype="bf16", num_tokens=64)
    out = kernel_of_ranks(case, partial="bf16")

    declared = judge(case, (out,), ORACLE, Limits(), BY_RANK)
    kept = judge(case, (out,), ORACLE, Limits(), Numerics())

    assert verdict_of(declared.judgements) not in FAILURES, declared.judgements
    assert verdict_of(kept.judgements) in FAILURES


def test_a_kernel_that_keeps_ranks_sums_passes_by_the_plain_contract() -> None:
    case = replace(NAMED["plain-bf16"], num_tokens=64)

    judged = judge(case, (kernel_of_ranks(case, partial="fp32"),), ORACLE, Limits(), Numerics())

    assert verdict_of(judged.judgements) not in FAILURES, judged.judgements


def test_the_reduction_order_is_a_parameter() -> None:
    case = NAMED["every-expert"]
    case = replace(case, dtype="bf16")
    orders: tuple[CombineOrder, ...] = ("tree", "slot", "expert", "rank")
    outs = [rounding(case, Numerics(combine=INPUT, combine_order=order, out="fp32")) for order in orders]

    for i, one in enumerate(outs):
        for other in outs[i + 1 :]:
            assert np.any(one != other)


def test_ranks_of_tokens_and_experts() -> None:
    assert ranks_of_experts(4, 2).tolist() == [0, 0, 1, 1]
    assert ranks_of_experts(4, 2, np.array([3, 0, 2, 1])).tolist() == [0, 1, 1, 0]
    assert ranks_of_experts(2, 2, np.array([0, 1, 1, 0])).tolist() == [0, 0]  # the first of two copies
    assert tokens_of_ranks(5, 2) == [slice(0, 3), slice(3, 5)]
    assert tokens_of_ranks(5, 2, np.array([0, 5])) == [slice(0, 0), slice(0, 5)]


def test_uneven_shares_have_an_empty_rank_and_all_tokens() -> None:
    for case in NAMED.values():
        if case.uneven_ranks:
            shares = case.inputs()["rank_tokens"]

            assert shares.min() == 0
            assert shares.sum() == case.num_tokens


def test_one_rank_gets_all_that_it_can() -> None:
    case = NAMED["all-to-one-rank"]
    _, ids = topk_routing(router_logits=case.inputs()["router_logits"], spec=case.spec.routing)

    assert (ranks_of_experts(case.num_experts, case.num_ranks)[ids] == case.num_ranks - 1).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"num_ranks": 3}, "num_experts=8 must be a multiple of num_ranks=3.", id="experts left over"),
        pytest.param({"op": "moe_layer", "num_ranks": 2}, "are of expert_parallel_moe", id="another op"),
        pytest.param(
            {"spec": MoESpec(routing=RoutingSpec(num_zero_experts=1))}, "has routed experts only", id="identity experts"
        ),
    ],
)
def test_cases_that_do_not_fit(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CaseError, match=sentence):
        replace(Case(op=OP), **changes)


def test_an_order_of_ranks_needs_ranks() -> None:
    def kernel(hidden_states: Any) -> Any: ...

    with pytest.raises(UsageError, match="knows no ranks"):
        describe(kernel, op="fused_experts", backend="numpy", numerics=BY_RANK)


def test_codes_and_scales_are_the_weights_that_they_stand_for() -> None:
    (case,) = (
        case
        for case in cases_for(OP, profile="quick", seed=0, quantizations=(SCHEMES["fp8-block"],))
        if case.spec.experts.quantization is not None and case.name
    )
    inputs = case.inputs()
    np.testing.assert_array_equal(
        expert_parallel_moe(**inputs, spec=case.spec), expert_parallel_moe(**dequantised(case, inputs), spec=case.spec)
    )
