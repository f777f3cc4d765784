"""The check of a call's contract: number, shape and dtype of the outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.contract import judge_contract
from moecheck.checks.finding import Verdict
from moecheck.curated import cases_for
from moecheck.formats import AnyArray
from moecheck.ops import OPS
from moecheck.oracle import Oracle
from moecheck.spec import MoESpec, RoutingSpec
from tests.checks.honest import honest_outputs

Change = Callable[[AnyArray], AnyArray]
SHARED = MoESpec(routing=RoutingSpec(top_k=2, num_fused_shared_experts=1))


@pytest.mark.parametrize("op", list(OPS))
def test_the_references_output_has_the_shapes_of_its_op(op: str) -> None:
    for case in cases_for(op, profile="quick", seed=0):
        oracle = Oracle()
        assert judge_contract(case, oracle.inputs(case), honest_outputs(case, oracle)).verdict is Verdict.PASS, case.id


def test_rows_of_any_stride_pass() -> None:
    case, oracle = Case(op="shuffle_rows"), Oracle()
    (out,) = honest_outputs(case, oracle)
    wide = np.zeros((len(out), out.shape[1] + 8), out.dtype)[:, :-8]

    assert judge_contract(case, oracle.inputs(case), (wide,)).verdict is Verdict.PASS


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32"])
def test_ids_may_be_wider_integers(dtype: str) -> None:
    case, oracle = Case(op="topk_routing"), Oracle()
    weights, ids = honest_outputs(case, oracle)

    assert judge_contract(case, oracle.inputs(case), (weights, ids.astype(dtype))).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("case", "output", "change", "text"),
    [
        pytest.param(Case(op="fused_experts"), 0, lambda a: a[:-1], "has shape [63, 256], expected [64, 256]", id="T"),
        pytest.param(Case(op="fused_experts"), 0, lambda a: a.T, "has shape [256, 64]", id="transposed"),
        pytest.param(Case(op="fused_experts"), 0, lambda a: a[:, :-1], "has shape [64, 255]", id="H"),
        pytest.param(Case(op="fused_experts"), 0, lambda a: a[None], "has shape [1, 64, 256]", id="another axis"),
        pytest.param(Case(op="fused_experts"), 0, lambda a: a[0, 0], "has shape []", id="a number"),
        pytest.param(
            Case(op="fused_experts"), 0, lambda a: a.astype(np.float32), "float32, expected bfloat16", id="fp32"
        ),
        pytest.param(
            Case(op="fused_experts", dtype="fp32"),
            0,
            lambda a: a.astype(np.float64),
            "float64, expected float32",
            id="fp64",
        ),
        pytest.param(
            Case(op="topk_routing"), 1, lambda a: a.astype(np.float32), "Topk_ids has dtype float32", id="ids as floats"
        ),
        pytest.param(
            Case(op="topk_routing"), 1, lambda a: a.astype(np.int16), "Topk_ids has dtype int16", id="narrow ids"
        ),
        pytest.param(
            Case(op="topk_routing"), 0, lambda a: a.astype(np.float16), "expected float32", id="weights in fp16"
        ),
        pytest.param(
            Case(op="topk_routing", spec=SHARED), 0, lambda a: a[:, :2], "expected [64, 3]", id="no shared slot"
        ),
        pytest.param(Case(op="act_and_mul"), 0, lambda a: np.tile(a, 2), "[64, 256], expected [64, 128]", id="2I"),
        pytest.param(
            Case(op="align_block_size"), 2, lambda a: a[0], "Num_tokens_post_padded has shape []", id="a scalar"
        ),
        pytest.param(Case(op="permute"), 0, lambda a: a[:-1], "Permuted has shape [127, 256]", id="R"),
        pytest.param(
            Case(op="problem_sizes", num_local_experts=4), 1, lambda a: np.tile(a, (2, 1)), "[4, 3]", id="global E"
        ),
        pytest.param(Case(op="grouped_gemm"), 0, lambda a: a[:, :-1], "expected [128, 256]", id="n"),
    ],
)
def test_a_broken_contract_is_proven(case: Case, output: int, change: Change, text: str) -> None:
    oracle = Oracle()
    outputs = list(honest_outputs(case, oracle))
    outputs[output] = change(outputs[output])
    result = judge_contract(case, oracle.inputs(case), tuple(outputs))

    assert result.verdict is Verdict.PROVEN_WRONG
    assert text in result.message


@pytest.mark.parametrize("op", list(OPS))
def test_a_missing_and_a_surplus_output_are_proven(op: str) -> None:
    case, oracle = Case(op=op), Oracle()
    outputs = honest_outputs(case, oracle)
    for wrong in (outputs[:-1], (*outputs, outputs[-1])):
        result = judge_contract(case, oracle.inputs(case), wrong)
        assert result.verdict is Verdict.PROVEN_WRONG
        assert f"Returned {len(wrong)} outputs, {op} has {len(outputs)}" in result.message


def test_the_scale_is_required_only_with_its_input() -> None:
    for given, wanted in ((False, Verdict.PASS), (True, Verdict.PROVEN_WRONG)):
        case, oracle = Case(op="permute", hidden_scale=given), Oracle()
        permuted, _, starts, inverse = honest_outputs(case, oracle)
        result = judge_contract(case, oracle.inputs(case), (permuted, np.zeros(0), starts, inverse))
        assert result.verdict is wanted
