"""assert_moe_close lets right outputs pass and raises, with a useful message, for wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import moecheck.testing
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.errors import MoecheckError, UsageError
from moecheck.formats import store
from moecheck.ops import OPS
from moecheck.oracle import Oracle
from moecheck.testing import Case, ExpertSpec, MoeMismatch, Numerics, assert_moe_close, capture
from moecheck.testing.given import given as described
from tests.checks.honest import honest_outputs
from tests.cli.command import moecheck as moecheck_command
from tests.testing.calls import (
    DTYPES,
    FRAMEWORKS,
    LAYER,
    TOP2,
    WRONG,
    native,
    right_outputs,
    scaled,
    small_case,
    swapped,
)

BF16_EXPERTS = Numerics(gate_up="input", act="input", act_times_up="input", per_expert="input")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_right_outputs_pass(framework: str, dtype: str) -> None:
    case = small_case(dtype=dtype)
    inputs, out = native(case.inputs(), framework), native(right_outputs(case)[0], framework)

    for given in (inputs, case):
        match = assert_moe_close(out, given)
        assert match.verdict is Verdict.PASS
        assert match.numbers["max_diff"] >= 0
        assert "would show" in match.limit


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_wrong_outputs_raise(wrong: Any, framework: str, dtype: str) -> None:
    case = small_case(dtype=dtype)
    out = native(wrong(right_outputs(case)[0]), framework)

    with pytest.raises(MoeMismatch) as caught:
        assert_moe_close(out, native(case.inputs(), framework))
    assert caught.value.examined.verdict in FAILURES


@pytest.mark.parametrize("op", list(OPS))
def test_every_op_is_inferred_from_its_arguments(op: str) -> None:
    case = small_case(op)
    spec = case.spec if "router_logits" in OPS[op].arg_names else None

    assert assert_moe_close(right_outputs(case), native(case.inputs(), "torch"), spec=spec).verdict is Verdict.PASS


def test_the_message_says_what_where_and_how_to_see_it_again() -> None:
    case = small_case()
    with pytest.raises(AssertionError) as caught:
        assert_moe_close(swapped(right_outputs(case)[0]), case)
    first, seen, *_, last = str(caught.value).splitlines()

    assert first == "✘ proven wrong fused_experts · bf16 · 12 tokens · 4 experts · top 2 · hidden 64 · intermediate 32"
    assert "token" in seen
    assert "expected" in seen
    assert "tokens 0, 1" in seen
    assert "exchanged" in str(caught.value)
    assert "max_diff=" in str(caught.value)
    assert isinstance(caught.value, MoecheckError)
    expression = last.removeprefix("  again: ").replace("true", "True")
    assert eval(expression, {"moecheck": moecheck}) == case


def test_the_frames_of_the_assertion_are_hidden_from_pytest() -> None:
    assert "__tracebackhide__" in assert_moe_close.__code__.co_varnames


def test_a_comparison_that_zeros_would_pass_is_no_success() -> None:
    case = small_case()
    with pytest.raises(MoeMismatch, match="vacuous") as caught:
        assert_moe_close(right_outputs(case)[0], case, tol=100.0)
    assert caught.value.examined.verdict is Verdict.VACUOUS
    assert "all-zeros output passes at tol=100" in str(caught.value)


def test_no_tokens_are_no_success() -> None:
    with pytest.raises(MoeMismatch, match="shows nothing"):
        assert_moe_close(np.zeros((0, 64), ml_dtypes.bfloat16), small_case(num_tokens=0).inputs())


def test_an_undefined_reference_is_no_success() -> None:
    case = small_case("grouped_gemm", dtype="fp32")
    inputs = case.inputs()
    inputs["expert_ends"] = inputs["expert_ends"] // 2  # the other rows belong to no expert
    out = right_outputs(case)[0]
    with pytest.raises(MoeMismatch) as caught:
        assert_moe_close(out, inputs)
    assert caught.value.examined.verdict is not Verdict.PASS


def test_an_expert_with_a_nan_bias_is_chosen_last() -> None:
    case = small_case("moe_layer")
    inputs = dict(case.inputs())
    inputs["correction_bias"] = np.where(np.arange(4) == 1, np.nan, inputs["correction_bias"]).astype(np.float32)
    call = described(inputs, op="moe_layer", spec=case.spec)
    out = store(call.oracle().values(call.case, None).true, "bf16")
    with pytest.raises(MoeMismatch):
        assert_moe_close(right_outputs(case)[0], inputs, spec=case.spec)
    assert assert_moe_close(out, inputs, spec=case.spec).verdict is Verdict.PASS


@pytest.mark.parametrize("shape", [(12, 63), (11, 64), (12,), (1, 12, 64)], ids=str)
def test_another_shape_is_proven_wrong(shape: tuple[int, ...]) -> None:
    with pytest.raises(MoeMismatch, match="proven wrong") as caught:
        assert_moe_close(np.ones(shape, ml_dtypes.bfloat16), small_case())
    assert "expected [12, 64]" in str(caught.value)


def test_another_dtype_is_proven_wrong() -> None:
    case = small_case()
    with pytest.raises(MoeMismatch, match="dtype float32, expected bfloat16"):
        assert_moe_close(right_outputs(case)[0].astype(np.float32), case)


def test_an_undeclared_contract_is_found_on_request() -> None:
    case = small_case(num_tokens=32, hidden_size=128)
    match = assert_moe_close(right_outputs(case)[0], case, numerics="identify")

    assert "in fp32" in match.contract
    assert match.numbers["agreement"] > 0.99


@pytest.mark.parametrize("load", ["random", "padding"])
def test_a_few_tokens_of_many_tell_the_contract(load: str) -> None:
    case = small_case(num_tokens=150, load=load)
    assert "in fp32" in assert_moe_close(right_outputs(case)[0], case, numerics="identify").contract


def test_a_declared_contract_is_what_the_output_is_compared_with() -> None:
    case = small_case()
    declared = BF16_EXPERTS.resolve("bf16")
    out = store(Oracle().values(case, declared).rounded, "bf16")
    assert assert_moe_close(out, case, numerics=declared).numbers["max_diff"] == 0.0


def _tied_call() -> tuple[dict[str, Any], tuple[Any, ...], tuple[Any, ...]]:
    """A router's inputs in which all scores are equal, and outputs that choose the lowest and the highest indices."""
    inputs = {"router_logits": np.zeros((16, 4), np.float32)}
    weights = np.full((16, 2), 0.5, np.float32)
    low, high = (np.tile(np.array(ids, np.int32), (16, 1)) for ids in ([0, 1], [2, 3]))
    return inputs, (weights, low), (weights, high)


def test_a_declared_rule_for_equal_scores_is_held_against_the_router() -> None:
    inputs, low, high = _tied_call()
    spec = small_case().spec.routing
    for out in (low, high):
        assert assert_moe_close(out, inputs, op="topk_routing", spec=spec).verdict is Verdict.PASS
    assert assert_moe_close(low, inputs, op="topk_routing", spec=spec, tie="lowest_index").verdict is Verdict.PASS
    with pytest.raises(MoeMismatch, match="It declares tie="):
        assert_moe_close(high, inputs, op="topk_routing", spec=spec, tie="lowest_index")


def test_the_dump_keeps_the_rule_for_equal_scores(tmp_path: Path) -> None:
    inputs, _, high = _tied_call()
    path = capture(tmp_path / "a", inputs=inputs, output=high, op="topk_routing", spec=TOP2, tie="lowest_index")
    assert moecheck_command("check", path).code == 1


def test_a_factor_shows_where_the_contract_is_only_nearly_known() -> None:
    """Weights 1.001 times in one of two kernels, after which no contract explains the bits."""
    case = small_case(num_tokens=64, num_experts=8, hidden_size=128, intermediate_size=64)
    inputs = dict(case.inputs())
    weights = inputs["topk_weights"].astype(np.float64)
    outs = {}
    for factor in (1.0, 1.001):
        call = described({**inputs, "topk_weights": (weights * factor).astype(np.float32)})
        outs[factor] = honest_outputs(call.case, call.oracle())
    assert assert_moe_close(outs[1.0], inputs, numerics="identify").verdict is Verdict.PASS
    with pytest.raises(MoeMismatch, match="near_contract"):
        assert_moe_close(outs[1.001], inputs, numerics="identify")


def test_a_failing_call_is_kept_where_the_environment_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOECHECK_CAPTURE", str(tmp_path / "kept"))
    case = small_case()
    with pytest.raises(MoeMismatch) as caught:
        assert_moe_close(torch.zeros(12, 64, dtype=torch.bfloat16), native(case.inputs(), "torch"))
    (kept,) = (tmp_path / "kept").iterdir()

    assert str(caught.value).splitlines()[-1] == f"  again: moecheck check {kept}"


def test_without_it_the_message_says_how() -> None:
    case = small_case()
    with pytest.raises(MoeMismatch, match="again: set MOECHECK_CAPTURE=DIR"):
        assert_moe_close(scaled(right_outputs(case)[0]), case.inputs())


@pytest.mark.parametrize(
    ("out", "given", "more", "words"),
    [
        pytest.param(None, small_case(), {}, "out must be a torch, jax or NumPy array, not NoneType", id="None"),
        pytest.param([1.0], small_case(), {}, "out must be .* not float", id="list of numbers"),
        pytest.param((1, 2), small_case(), {}, r"1 outputs \(out\), not 2", id="too many outputs"),
        pytest.param(np.ones(3), 3, {}, "a moecheck Case or a dict .* not int", id="no case"),
        pytest.param(np.ones(3), small_case(), {"op": "permute"}, "has its own op and spec", id="op of a case"),
        pytest.param(np.ones(3), small_case(), {"spec": LAYER}, "has its own op and spec", id="spec of a case"),
        pytest.param(np.ones(3), small_case(), {"tol": -1.0}, "tol=-1.0 must be", id="negative tol"),
        pytest.param(np.ones(3), small_case(), {"tol": float("nan")}, "tol=nan must be", id="NaN tol"),
        pytest.param(np.ones(3), small_case(), {"numerics": "bf16"}, "numerics='bf16' must be", id="numerics"),
        pytest.param(np.ones(3), small_case(), {"numerics": np.zeros(3)}, "numerics=array.* must be", id="an array"),
        pytest.param(np.ones(3), small_case(), {"numerics": np.zeros((9, 9))}, "=a ndarray must", id="a large array"),
        pytest.param(np.ones(3), small_case(), {"tol": True}, "tol=True must be", id="a tol that is none"),
        pytest.param(np.ones(3), small_case(), {"op": np.zeros(3)}, "has its own op and spec", id="an array as op"),
        pytest.param(np.ones(3), small_case(), {"spec": np.zeros(3)}, "has its own op and", id="an array as spec"),
        pytest.param(np.ones(3), small_case().inputs(), {"op": 3}, "op=3 must be text", id="an op that is no text"),
        pytest.param(
            np.ones(3), small_case(), {"tie": "first"}, "tie='first' must be 'lowest_index' or None", id="tie"
        ),
        pytest.param(np.ones(3), small_case(), {"tie": ["x"]}, r"tie=\['x'\] must be 'lowest", id="a list as tie"),
        pytest.param(np.ones(3), {1: 2}, {}, "1 is no name of an argument", id="a number as name"),
        pytest.param(np.ones(3), small_case().inputs(), {"spec": 3}, "spec must be .* not int", id="spec"),
    ],
)
def test_arguments_that_do_not_fit(out: object, given: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        assert_moe_close(out, given, **more)


def test_the_experts_spec_alone_will_do() -> None:
    experts = ExpertSpec(activation="gelu")
    case = small_case(spec=type(LAYER)(routing=small_case().spec.routing, experts=experts))
    out = right_outputs(case)[0]

    assert assert_moe_close(out, case.inputs(), spec=experts).verdict is Verdict.PASS
    with pytest.raises(MoeMismatch):
        assert_moe_close(out, case.inputs())


def test_the_public_names_are_these() -> None:
    assert moecheck.testing.__all__ == sorted(moecheck.testing.__all__)
    assert all(hasattr(moecheck.testing, name) for name in moecheck.testing.__all__)
    assert moecheck.testing.Case is Case
