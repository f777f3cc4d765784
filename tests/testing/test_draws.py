"""The strategies draw what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from moecheck.errors import UsageError
from moecheck.ops import OPS
from moecheck.spec import SWIGLUOAI, MoESpec, RoutingSpec
from moecheck.testing import Case, assert_moe_close, contiguous, moe_cases
from tests.testing.calls import right_outputs

EVERY = settings(derandomize=True, database=None, deadline=None)
GROUPED = MoESpec(
    routing=RoutingSpec(top_k=6, num_expert_groups=8, topk_groups=2, num_zero_experts=2), shared_experts="gated"
)


@given(st.data())
@settings(EVERY, max_examples=30)
def test_dtypes_and_tokens_are_those_asked_for(data: st.DataObject) -> None:
    case = data.draw(moe_cases("fused_experts", dtypes=("fp16",), max_tokens=40))
    assert case.dtype == "fp16"
    assert case.num_tokens <= 40


@given(st.data())
@settings(EVERY, max_examples=30)
@pytest.mark.parametrize("spec", [GROUPED, GROUPED.routing, SWIGLUOAI], ids=["layer", "routing", "experts"])
def test_only_the_wanted_semantics_are_drawn(spec: Any, data: st.DataObject) -> None:
    case = data.draw(moe_cases("moe_layer", spec=spec, small=True))
    assert spec in (case.spec, case.spec.routing, case.spec.experts)
    assert set(case.inputs()) <= set(OPS["moe_layer"].arg_names)


def test_they_shrink_to_a_simple_case() -> None:
    case = find(moe_cases("permute", max_tokens=16).map(contiguous), lambda case: case.num_tokens > 0, settings=EVERY)
    assert isinstance(case, Case)
    assert (case.num_tokens, case.layout, case.stratum, case.load) == (16, "contiguous", "random", "random")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"op": "permut"}, "Did you mean 'permute'", id="op"),
        pytest.param({"dtypes": ("bf61",)}, "Did you mean 'bf16'", id="dtype"),
        pytest.param({"dtypes": ()}, "leave no case", id="no dtype"),
        pytest.param({"op": 3}, "op=3 must be text", id="an op that is no text"),
        pytest.param({"dtypes": (16,)}, "dtype=16 must be text", id="a dtype that is no text"),
        pytest.param({"spec": "silu"}, "spec must be a MoESpec", id="spec"),
        pytest.param({"max_tokens": "8"}, "max_tokens='8' must be an integer", id="tokens in words"),
        pytest.param({"max_tokens": 0}, "leave no case", id="no tokens"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        moe_cases(**arguments)


@pytest.mark.parametrize("op", ["fused_experts", "permute", "unpermute"])
def test_few_tokens_never_leave_a_comparison_without_anything_to_show(op: str) -> None:
    @given(moe_cases(op, max_tokens=4, small=True))
    @settings(EVERY, max_examples=25)
    def passes(case: Case) -> None:
        assert_moe_close(right_outputs(case), case)

    passes()
