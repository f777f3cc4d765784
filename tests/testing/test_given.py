"""Arrays become the case that they are."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from moecheck.cases import Case
from moecheck.curated import cases_for
from moecheck.ops import OPS
from moecheck.spec import ExpertSpec, MoESpec
from moecheck.testing.given import given
from tests.testing.calls import LAYER, TOP2, native, small_case

SIZES = ("num_tokens", "num_experts", "hidden_size", "intermediate_size", "shared_intermediate_size")
# Ops whose arguments show all of these sizes.
SIZED = ("fused_experts", "moe_layer")
CASES = [
    case for op in OPS for case in cases_for(op, profile="quick", seed=0, examples=0)[: None if op in SIZED else 4]
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_cases_own_inputs_give_a_case_of_its_sizes(case: Case) -> None:
    described = given(case.inputs(), spec=case.spec)
    found = described.case

    rows = len(case.inputs()["x"]) if case.op == "grouped_gemm" else case.num_tokens
    if case.op == "batched_experts":
        rows = int(case.inputs()["expert_counts"].sum())
    assert (found.op, found.num_tokens, found.hidden_scale) == (case.op, rows, case.hidden_scale)
    if any(arg.kind == "input" for arg in OPS[case.op].args):
        assert found.dtype == case.dtype
    if case.op in SIZED:
        assert [getattr(found, name) for name in SIZES] == [getattr(case, name) for name in SIZES]
        assert found.num_local_experts == case.num_local_experts
        assert found.spec.experts == case.spec.experts
    assert described.inputs.keys() == case.inputs().keys()
    assert case.op in described.words()


def test_the_oracle_reads_the_given_arrays_and_other_cases_their_own() -> None:
    inputs = small_case().inputs()
    described = given(inputs)
    oracle = described.oracle()

    assert oracle.inputs(described.case)["w13"] is inputs["w13"]
    assert oracle.inputs(small_case())["w13"] is not inputs["w13"]


def test_other_arrays_give_another_case() -> None:
    inputs = small_case().inputs()
    changed = {**inputs, "hidden_states": inputs["hidden_states"] * inputs["hidden_states"].dtype.type(2)}

    assert given(inputs).case == given(dict(inputs)).case
    assert given(inputs).case.key != given(changed).case.key


def test_none_stands_for_an_absent_argument() -> None:
    assert "w13_bias" not in given({**small_case().inputs(), "w13_bias": None, "expert_map": None}).inputs


def test_a_bias_that_is_given_is_part_of_the_spec() -> None:
    case = small_case(spec=MoESpec(routing=TOP2.routing, experts=ExpertSpec(w13_bias=True, w2_bias=True)))
    assert given(case.inputs()).case.spec.experts == case.spec.experts


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_ids_of_any_integer_dtype_are_read(dtype: torch.dtype) -> None:
    inputs = native(small_case().inputs(), "torch")
    inputs["topk_ids"] = inputs["topk_ids"].to(dtype)
    assert given(inputs).inputs["topk_ids"].dtype == np.int32


def test_the_largest_unsigned_index_stands_for_none() -> None:
    inputs = small_case().inputs()
    inputs["topk_ids"] = inputs["topk_ids"].astype(np.int32)
    inputs["topk_ids"][0, 0] = -1
    unsigned = {**inputs, "topk_ids": inputs["topk_ids"].view(np.uint32)}
    assert given(unsigned).inputs["topk_ids"][0, 0] == -1


def test_routing_weights_and_biases_may_be_of_another_format() -> None:
    inputs = small_case("moe_layer").inputs()
    inputs["router_logits"] = inputs["router_logits"].astype(ml_dtypes.bfloat16)
    inputs["w13_bias"] = inputs["w13_bias"].astype(np.float32)
    assert given(inputs, spec=LAYER).inputs["router_logits"].dtype == ml_dtypes.bfloat16


def test_arrays_of_another_byte_order_are_read() -> None:
    inputs = small_case(dtype="fp32").inputs()
    foreign = {**inputs, "w2": inputs["w2"].astype(">f4")}
    np.testing.assert_array_equal(given(foreign).inputs["w2"], inputs["w2"])


def test_rows_that_are_apart_in_memory_are_read() -> None:
    inputs = native(small_case().inputs(), "torch")
    wide = torch.full((12, 80), float("nan"), dtype=torch.bfloat16)
    wide[:, :64] = inputs["hidden_states"]
    described = given({**inputs, "hidden_states": wide[:, :64]})
    np.testing.assert_array_equal(described.inputs["hidden_states"], given(inputs).inputs["hidden_states"])


def test_integers_may_be_arrays_of_one() -> None:
    inputs: dict[str, Any] = small_case("align_block_size").inputs()
    inputs["block_size"], inputs["num_experts"] = torch.tensor(16), np.int64(4)
    assert given(inputs).case.block_size == 16
    assert given({**inputs, "block_size": np.array([16])}).case.block_size == 16
