"""Identification finds what an independent NumPy kernel does, and explains no fault by rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.identify import Identified, identification_cases, identify, is_known
from moecheck.kernel import Declaration, describe
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import Oracle
from moecheck.runner.plan import lacking
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec
from tests.numpy_experts import DTYPES, experts

ORACLE = Oracle()
TOP4 = MoESpec(routing=RoutingSpec(top_k=4, renormalize=True))
BIASED = replace(TOP4, experts=ExpertSpec(w13_bias=True, w2_bias=True))
HALVES = Numerics(gate_up=INPUT, act_times_up=INPUT)
EAGER = Numerics(
    gate_up=INPUT,
    act=INPUT,
    act_times_up=INPUT,
    per_expert=INPUT,
    weighted=INPUT,
    combine=INPUT,
    combine_order="expert",
)
MARGIN = 0.1  # by which every other contract explains less
Observations = list[tuple[Case, AnyArray]]


def case_of(dtype: str, spec: MoESpec = TOP4, seed: int = 7) -> Case:
    return Case(
        op="fused_experts",
        spec=spec,
        num_tokens=16,
        num_experts=8,
        hidden_size=192,
        intermediate_size=128,
        dtype=dtype,
        seed=seed,
    )


def observed(does: Numerics, *dtypes: str, spec: MoESpec = TOP4, factor: float = 1.0, seed: int = 7) -> Observations:
    cases = [case_of(dtype, spec, seed) for dtype in dtypes]
    return [(case, experts(case, ORACLE.inputs(case), does, factor=factor)) for case in cases]


def found(does: Numerics, *dtypes: str, spec: MoESpec = TOP4, factor: float = 1.0) -> Identified:
    return identify(observed(does, *dtypes, spec=spec, factor=factor), ORACLE)


@pytest.mark.parametrize(
    "does",
    [
        pytest.param(Numerics(), id="nothing stored but the output"),
        pytest.param(HALVES, id="gate/up and act(g)*u stored"),
        pytest.param(replace(HALVES, per_expert=INPUT), id="expert outputs stored"),
        pytest.param(replace(HALVES, weighted=INPUT), id="weighted outputs stored"),
        pytest.param(replace(HALVES, act=INPUT, weighted=INPUT), id="act(g) stored too"),
        pytest.param(replace(HALVES, topk_weights=INPUT), id="routing weights rounded"),
        pytest.param(replace(HALVES, combine=INPUT, combine_order="slot"), id="added low in slot order"),
        pytest.param(EAGER, id="every store low, added in expert order"),
        pytest.param(replace(EAGER, topk_weights=INPUT), id="every store low, the weights too"),
    ],
)
@pytest.mark.parametrize("dtypes", [("bf16",), ("fp16",), ("bf16", "fp16", "fp32")], ids=" ".join)
def test_the_contract_is_found_and_no_other_comes_near(does: Numerics, dtypes: tuple[str, ...]) -> None:
    identified = found(does, *dtypes)

    assert identified.known
    assert identified.numerics == does
    assert identified.equivalent == ()
    assert identified.runner_up_agreement <= identified.agreement - MARGIN


@pytest.mark.parametrize(
    "does",
    [
        pytest.param(Numerics(topk_weights="bf16"), id="weights"),
        pytest.param(Numerics(gate_up="bf16", act_times_up="bf16"), id="two stores"),
        pytest.param(Numerics(act_times_up="fp16", topk_weights="fp16"), id="two stores in fp16"),
        pytest.param(
            Numerics(
                topk_weights="bf16",
                gate_up="bf16",
                act_times_up="bf16",
                per_expert="bf16",
                combine="bf16",
                combine_order="slot",
            ),
            id="nearly all",
        ),
    ],
)
@pytest.mark.parametrize("dtypes", [("fp32",), ("bf16", "fp16", "fp32")], ids=" ".join)
def test_stores_in_a_format_of_their_own_are_found(does: Numerics, dtypes: tuple[str, ...]) -> None:
    identified = found(does, *dtypes)

    assert identified.known
    assert identified.numerics == does


def test_a_gemm_that_stores_before_its_bias_is_found() -> None:
    does = replace(HALVES, before_bias=INPUT)

    assert found(does, "bf16", spec=BIASED).numerics == does
    assert found(HALVES, "bf16", spec=BIASED).numerics == HALVES


@pytest.mark.parametrize("fmt", ["fp32", "bf16", "fp16"])
def test_a_layer_that_stores_its_scores_low_is_found(fmt: str) -> None:
    routing = RoutingSpec(top_k=4, renormalize=True)
    case = replace(case_of("bf16", MoESpec(routing=routing)), op="moe_layer")
    inputs = ORACLE.inputs(case)
    powers = np.exp(inputs["router_logits"] - inputs["router_logits"].max(axis=1, keepdims=True))
    scores = (powers / powers.sum(axis=1, keepdims=True)).astype(DTYPES[fmt]).astype(np.float32)
    ids = np.argsort(-scores, axis=1)[:, :4]
    chosen = np.take_along_axis(scores, ids, axis=1)
    given = {**inputs, "topk_ids": ids, "topk_weights": chosen / chosen.sum(axis=1, keepdims=True)}
    identified = identify([(case, experts(case, given, HALVES))], ORACLE)

    assert identified.known
    assert identified.numerics == replace(HALVES, scores=INPUT if fmt == "bf16" else fmt)


@pytest.mark.parametrize("dtypes", [("bf16",), ("fp32",)], ids=" ".join)
@pytest.mark.parametrize("factor", [1.002, 0.9995])
@pytest.mark.parametrize("does", [HALVES, EAGER], ids=["a GPU's contract", "eager"])
def test_a_factor_on_the_weights_is_never_explained(does: Numerics, factor: float, dtypes: tuple[str, ...]) -> None:
    honest, wrong = found(does, *dtypes), found(does, *dtypes, factor=factor)

    assert honest.known
    assert not wrong.known
    assert wrong.agreement <= honest.agreement - 0.05
    assert wrong.words().startswith("contract unknown")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_gate_that_is_taken_for_up_is_never_explained(dtype: str) -> None:
    case = case_of(dtype)
    inputs = ORACLE.inputs(case)
    swapped = {**inputs, "w13": np.roll(inputs["w13"], case.intermediate_size, axis=1)}

    assert not identify([(case, experts(case, swapped, HALVES))], ORACLE).known


@pytest.mark.parametrize("columns", [1, 40])
def test_a_row_of_weights_that_is_lost_is_no_store(columns: int) -> None:
    case = case_of("fp32")
    inputs = ORACLE.inputs(case)
    kept = np.arange(case.hidden_size) < case.hidden_size - columns
    short = {**inputs, "hidden_states": inputs["hidden_states"] * kept}

    assert not identify([(case, experts(case, short, HALVES))], ORACLE).known


@pytest.mark.parametrize("value", [np.nan, 0.0], ids=["NaN", "zeros"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_an_output_without_information_is_unknown(dtype: str, value: float) -> None:
    ((case, out),) = observed(HALVES, dtype)

    assert not identify([(case, np.full_like(out, value))], ORACLE).known


def test_with_two_slots_one_sum_is_like_the_other() -> None:
    identified = found(EAGER, "bf16", spec=replace(TOP4, routing=RoutingSpec(top_k=2, renormalize=True)))
    tree, slot = replace(EAGER, combine="fp32", combine_order="tree"), replace(EAGER, combine_order="slot")

    assert identified.known
    assert identified.numerics == tree  # the plainest of those with the same bits
    assert set(identified.equivalent) == {slot, EAGER}
    assert "The same bits come from: adds in the input's format in slot order" in identified.words()


def test_words_say_what_the_kernel_does() -> None:
    identified = found(replace(EAGER, topk_weights=INPUT), "bf16")

    assert identified.words().startswith(
        "stores gate/up, act(g), act(g)*u, expert outputs and weighted expert outputs in the input's format, "
        "multiplies by routing weights rounded to the input's format, adds in the input's format in expert order; "
    )
    assert f"agreement {identified.agreement:.4f}, runner-up 0." in identified.words()


def test_a_kernel_that_changes_its_contract_is_told_from_an_unknown_one() -> None:
    both = [*observed(HALVES, "bf16"), *observed(replace(HALVES, weighted=INPUT), "bf16", seed=8)]
    identified = identify(both, ORACLE)

    assert not identified.known
    assert [part.numerics for _, part in identified.by_case] == [HALVES, replace(HALVES, weighted=INPUT)]
    assert identified.words().startswith("changes its contract between cases: on fused_experts/bf16")


def test_a_second_kernel_on_the_same_cases_gives_the_same_as_a_fresh_search() -> None:
    observations = observed(HALVES, "bf16")
    found(EAGER, "bf16")

    assert identify(observations, ORACLE) == identify(observations, Oracle())


def test_no_output_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="one output at least"):
        identify([], ORACLE)


def test_more_flips_than_simulated_are_allowed_for_but_no_store() -> None:
    assert is_known(0.96, 0.99, rows=100)
    assert not is_known(0.9, 0.99, rows=100)
    assert is_known(0.9, 0.99, rows=2)
    assert not is_known(float("nan"), 0.99, rows=100)
    assert is_known(0.4, 0.7, rows=100)  # fp32 with bf16 inside: one flip moves a whole row
    assert not is_known(0.001, 0.4, rows=1)


def declared(op: str, names: str, *dtypes: str, specs: tuple[MoESpec, ...] = ()) -> Declaration:
    """A kernel with these arguments, separated by blanks; all formats unless some are named."""
    scope: dict[str, Any] = {}
    exec(f"def kernel(*, {', '.join(names.split())}): ...", scope)
    formats = dtypes or ("fp32", "fp16", "bf16")
    return describe(scope["kernel"], op=op, backend="numpy", dtypes=formats, specs=specs)


EXPERTS = "hidden_states w13 w2 topk_weights topk_ids"
LAYER = "hidden_states router_logits w13 w2"
GPT_OSS = (replace(TOP4, experts=SWIGLUOAI),)
SHARED = (MoESpec(routing=RoutingSpec(top_k=4), shared_experts="gated"),)


@pytest.mark.parametrize(
    ("declaration", "count"),
    [
        pytest.param(declared("fused_experts", EXPERTS), 3, id="no spec"),
        pytest.param(declared("fused_experts", f"{EXPERTS} spec"), 3, id="any spec without biases"),
        pytest.param(declared("fused_experts", f"{EXPERTS} spec w13_bias=None w2_bias=None"), 4, id="biases"),
        pytest.param(
            declared("fused_experts", f"{EXPERTS} spec w13_bias w2_bias", "bf16", specs=GPT_OSS), 2, id="GPT-OSS"
        ),
        pytest.param(declared("moe_layer", LAYER), 3, id="a layer without spec"),
        pytest.param(
            declared("moe_layer", f"{LAYER} shared_w13 shared_w2 shared_gate spec", specs=SHARED),
            3,
            id="a gated shared expert",
        ),
        pytest.param(declared("grouped_gemm", "x w expert_ends"), 3, id="a GEMM"),
        pytest.param(declared("grouped_gemm", "x w expert_ends bias=None"), 4, id="a GEMM with a bias"),
        pytest.param(declared("unpermute", "permuted topk_weights inv_permuted_idx", "fp32"), 2, id="fp32 only"),
        pytest.param(declared("act_and_mul", "x spec"), 3, id="an activation"),
        pytest.param(declared("permute", "hidden_states topk_ids num_experts"), 0, id="no floating-point output"),
    ],
)
def test_every_kernel_gets_cases_that_it_can_take(declaration: Declaration, count: int) -> None:
    cases = identification_cases(declaration)

    assert len(cases) == count
    assert [lacking(declaration, case) for case in cases] == [None] * count
    assert {case.dtype for case in cases} == (set(declaration.dtypes) if count else set())
    if count and ("spec" in declaration.arguments or declaration.op != "moe_layer"):
        assert all(case.spec.routing.top_k >= 3 for case in cases)
