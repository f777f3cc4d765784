"""Inputs do what their stratum and load say."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from moecheck import metrics
from moecheck.bounds import score_eps
from moecheck.cases import Case
from moecheck.curated import cases_for
from moecheck.errors import CaseError
from moecheck.formats import FORMATS, AnyArray, Float64, round_to, to_float64
from moecheck.ops import LAYERS, OPS
from moecheck.references.act_and_mul import split
from moecheck.references.fused_experts import fused_experts
from moecheck.references.grouped_gemm import grouped_gemm
from moecheck.references.moe_layer import moe_layer
from moecheck.references.topk_routing import scores_of
from moecheck.runner.plan import array_arguments
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec
from moecheck.weights import ExpertWeights, outlier_channels
from tests.bounds import GATE_UP_RMS, OUTPUT_RMS

TOP4 = MoESpec(routing=RoutingSpec(top_k=4, renormalize=True))


@cache
def some_cases(op: str) -> list[Case]:
    return cases_for(op, profile="default", seed=5, examples=10)


def experts(case: Case) -> Float64:
    return fused_experts(**case.inputs(), spec=case.spec.experts)


def inside(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


@pytest.mark.parametrize("op", list(OPS))
def test_arguments_are_those_of_the_op(op: str) -> None:
    kinds = {arg.name: arg.kind for arg in OPS[op].args}
    for case in some_cases(op):
        inputs = case.inputs()

        assert inputs.keys() <= kinds.keys()
        assert {name for name, value in inputs.items() if isinstance(value, np.ndarray)} == array_arguments(case)
        for name, value in inputs.items():
            if kinds[name] == "int":
                assert isinstance(value, int)
            else:
                wanted = FORMATS[case.dtype].storage if kinds[name] == "input" else np.dtype(kinds[name])
                assert value.dtype == wanted, (case.id, name)


@pytest.mark.parametrize("op", list(OPS))
def test_the_same_case_builds_the_same_bits(op: str) -> None:
    for case in some_cases(op)[:4]:
        for (name, one), other in zip(case.inputs().items(), case.inputs().values(), strict=True):
            assert np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes(), name


@pytest.mark.parametrize("op", ["fused_experts", "moe_layer"])
def test_gate_up_and_output_are_of_telling_size(op: str) -> None:
    tried = 0
    for case in some_cases(op):
        if case.num_tokens < 2 or case.stratum != "random" or case.spec.experts.swiglu_limit is not None:
            continue
        if case.load == "padding" or case.num_local_experts is not None:  # many rows are 0 there
            continue
        if case.spec.latent_experts:  # the experts read another input
            continue
        inputs, tried = case.inputs(), tried + 1
        gate, up = split(to_float64(inputs["hidden_states"]) @ to_float64(inputs["w13"][0]).T, case.spec.experts)
        layer = op == "moe_layer"
        out = moe_layer(**inputs, spec=case.spec) if layer else experts(case)

        assert inside(metrics.rms(gate), GATE_UP_RMS), case.id
        assert up is None or inside(metrics.rms(up), GATE_UP_RMS), case.id
        assert inside(metrics.rms(out), OUTPUT_RMS), case.id
    assert tried >= 5


@pytest.mark.parametrize("stratum", ["outlier", "cancelling", "zero_rows", "positive"])
@pytest.mark.parametrize("op", ["fused_experts", "moe_layer"])
def test_other_strata_have_outputs_of_telling_size(op: str, stratum: str) -> None:
    case = Case(op=op, stratum=stratum, spec=TOP4, num_tokens=32)
    out = moe_layer(**case.inputs(), spec=case.spec) if op == "moe_layer" else experts(case)

    # Every sixteenth token of `outlier` is larger on purpose.
    usual = np.delete(out, np.s_[::16], axis=0) if stratum == "outlier" else out
    assert inside(metrics.rms(usual), OUTPUT_RMS)


@pytest.mark.parametrize("spec", [SWIGLUOAI, ExpertSpec(swiglu_limit=10.0)], ids=["swigluoai", "limit 10"])
def test_a_clamp_acts_in_one_cell_of_twenty(spec: ExpertSpec) -> None:
    case = Case(op="fused_experts", spec=MoESpec(experts=spec))
    inputs = case.inputs()
    gate, up = split(to_float64(inputs["hidden_states"]) @ to_float64(inputs["w13"][0]).T, spec)

    assert up is not None
    assert spec.swiglu_limit is not None
    assert np.count_nonzero(np.abs(up) > spec.swiglu_limit) > up.size // 20
    assert np.count_nonzero(np.abs(gate) > spec.swiglu_limit) > gate.size // 20


@pytest.mark.parametrize("dtype", list(FORMATS))
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_integer_values_are_exact_at_every_step(dtype: str, layout: str, activation: str) -> None:
    """Every product, partial sum and store of every expert is a number of bf16, in whatever order they are added."""
    spec = ExpertSpec(activation=activation, gate_up_layout=layout)  # type: ignore[arg-type]  # parametrized literals
    case = Case(
        op="fused_experts",
        stratum="integer",
        dtype=dtype,
        num_tokens=40,
        spec=MoESpec(routing=TOP4.routing, experts=spec),
    )
    inputs = case.inputs()
    x = to_float64(inputs["hidden_states"])
    for e in range(case.num_experts):
        w13, w2 = to_float64(inputs["w13"][e]), to_float64(inputs["w2"][e])
        gate, up = split(x @ w13.T, spec)
        assert up is not None
        h = gate * up
        largest_sum = np.abs(h) @ np.abs(w2).T
        ones = 4.0  # in each token
        assert set(np.unique(np.abs(h))) <= {64 * ones * n for n in range(5)}
        # Multiples of 4 up to 2^8 of them: partial sums of any order are numbers of bf16.
        assert (largest_sum <= ones * 256).all()
        assert set(np.unique(np.abs(x @ w13.T))) <= {0.0, 1.0, 2.0, 3.0, 4.0, 64 * ones}
    out = experts(case)
    weights = to_float64(inputs["topk_weights"])

    assert set(np.unique(weights)) <= {0.5, 1.0, 2.0}
    np.testing.assert_array_equal(round_to(out, "bf16"), out)
    assert np.count_nonzero(out) > out.size // 2


def test_integer_products_of_a_grouped_gemm_are_exact() -> None:
    case = Case(op="grouped_gemm", stratum="integer")
    out = grouped_gemm(**case.inputs())

    assert set(np.unique(np.abs(out))) == {0.0, 1.0, 2.0, 128.0}


@pytest.mark.parametrize("spec", [SWIGLUOAI, ExpertSpec(activation="relu2", gated=False)], ids=["clamped", "relu2"])
def test_integer_values_need_their_premises(spec: ExpertSpec) -> None:
    with pytest.raises(CaseError, match="stratum='integer' needs a gated silu or gelu"):
        Case(op="fused_experts", stratum="integer", spec=MoESpec(experts=spec)).inputs()


def test_cancelling_outputs_are_small_against_their_terms() -> None:
    case = Case(op="fused_experts", stratum="cancelling", dtype="fp32")
    inputs = case.inputs()
    magnitudes = {**inputs, "w2": np.abs(inputs["w2"])}
    terms = fused_experts(**magnitudes, spec=case.spec.experts)
    plain = Case(op="fused_experts", dtype="fp32")
    plain_inputs = plain.inputs()
    plain_terms = fused_experts(**{**plain_inputs, "w2": np.abs(plain_inputs["w2"])}, spec=plain.spec.experts)

    ratio = metrics.rms(terms) / metrics.rms(experts(case))
    assert ratio > 2 * metrics.rms(plain_terms) / metrics.rms(experts(plain))


def test_positive_operands_are_positive() -> None:
    inputs = Case(op="fused_experts", stratum="positive").inputs()

    assert all((to_float64(inputs[name]) > 0).all() for name in ("hidden_states", "w13", "w2"))
    assert (inputs["topk_weights"] >= 0).all()


def test_outlier_channels_are_fifty_times_larger() -> None:
    case, plain = (Case(op="permute", stratum=name, hidden_size=256, num_tokens=500) for name in ("outlier", "random"))
    sizes = np.sqrt(np.mean(to_float64(case.inputs()["hidden_states"]) ** 2, axis=0))
    ordinary = np.sqrt(np.mean(to_float64(plain.inputs()["hidden_states"]) ** 2))
    large = np.flatnonzero(sizes > 25 * ordinary)

    assert large.tolist() == outlier_channels(case)
    assert len(large) == 2


def test_zero_rows_are_entirely_zero_among_others() -> None:
    x = to_float64(Case(op="permute", stratum="zero_rows", num_tokens=10).inputs()["hidden_states"])

    assert np.flatnonzero(~x.any(axis=1)).tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("load", ["random", "skewed", "one_expert", "block_edges", "padding"])
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(96, 8, 2), (1, 4, 4), (33, 40, 7), (5, 1, 1)])
def test_ids_are_distinct_and_padded_only_under_padding(
    load: str, num_tokens: int, num_experts: int, top_k: int
) -> None:
    spec = MoESpec(routing=RoutingSpec(top_k=top_k))
    case = Case(op="permute", load=load, num_tokens=num_tokens, num_experts=num_experts, spec=spec)
    ids = case.inputs()["topk_ids"]

    assert ids.shape == (num_tokens, top_k)
    assert ids.max(initial=0) < num_experts
    for row in ids.tolist():
        real = [expert for expert in row if expert >= 0]
        assert len(set(real)) == len(real)
        assert load == "padding" or len(real) == top_k
    assert ids.min(initial=0) >= -1


def test_padding_has_whole_tokens_and_single_slots() -> None:
    ids = Case(op="permute", load="padding", num_tokens=200).inputs()["topk_ids"]
    padded = (ids < 0).sum(axis=1)

    assert set(padded.tolist()) == {0, 1, 2}


def test_block_edges_has_counts_around_the_block_size() -> None:
    case = Case(op="align_block_size", load="block_edges", num_tokens=96, block_size=16, num_experts=16)
    counts = np.bincount(case.inputs()["topk_ids"].reshape(-1), minlength=16)

    assert counts[:6].tolist() == [15, 16, 17, 0, 32, 1]
    assert counts.sum() == 96 * 2


def test_a_skewed_load_leaves_experts_empty() -> None:
    case = Case(op="permute", load="skewed", num_tokens=32, num_experts=64)
    counts = np.bincount(case.inputs()["topk_ids"].reshape(-1), minlength=64)

    assert (counts == 0).any()
    assert counts.max() > 4 * counts.mean()


def test_one_expert_sends_every_token_the_same_way() -> None:
    ids = Case(op="permute", load="one_expert", num_tokens=50, num_experts=12, spec=TOP4).inputs()["topk_ids"]

    assert (ids == ids[0]).all()


@pytest.mark.parametrize("num_experts", [4, 8, 60, 64, 256])
@pytest.mark.parametrize("dtype", list(FORMATS))
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
def test_gapped_logits_leave_no_choice_to_rounding(scoring: str, dtype: str, num_experts: int) -> None:
    spec = RoutingSpec(top_k=2, scoring=scoring)  # type: ignore[arg-type]  # a parametrized literal
    case = Case(op="topk_routing", load="gapped", dtype=dtype, num_experts=num_experts, spec=MoESpec(routing=spec))
    scores, _ = scores_of(router_logits=case.inputs()["router_logits"], spec=spec)
    ordered = np.sort(scores, axis=1)
    eps = score_eps(ordered, 0.0, "fp32", spread=8.0)  # logits lie within 8 of each other

    assert (np.diff(ordered, axis=1) >= 64 * np.maximum(eps[:, 1:], eps[:, :-1])).all()


@pytest.mark.parametrize("op", ["topk_routing", "moe_layer"])
def test_logits_are_what_their_load_says(op: str) -> None:
    def logits(load: str) -> Float64:
        return to_float64(Case(op=op, load=load, num_experts=32, num_tokens=40, dtype="fp32").inputs()["router_logits"])

    ties, near, extreme = logits("ties"), logits("near_ties"), logits("extreme")
    assert (np.sort(ties, axis=1)[:, 1:] == np.sort(ties, axis=1)[:, :-1]).any(axis=1).all()
    assert (np.diff(np.sort(near, axis=1), axis=1) == 2.0**-23).all()
    assert (logits("negative") < 0).all()
    assert {1, extreme.shape[1]} <= set(np.isnan(extreme).sum(axis=1).tolist())  # one NaN, and nothing else
    assert (extreme == np.inf).any()
    assert (extreme == -np.inf).any()
    assert (np.ptp(extreme[1::8], axis=1) == 0).all()
    assert np.isfinite(logits("random")).all()


def test_a_correction_bias_has_values_below_minus_one_and_above_one() -> None:
    spec = MoESpec(routing=RoutingSpec(scoring="sigmoid", correction_bias="select"))
    bias = Case(op="topk_routing", spec=spec).inputs()["correction_bias"]

    assert bias.min() < -1 < 1 < bias.max()
    assert len(np.unique(bias)) == len(bias)


# Ops without rows of numbers, and one whose rows may be garbage.
WITHOUT_ROWS = ("align_block_size", "problem_sizes", "expert_counts", "batched_experts")


@pytest.mark.parametrize("op", [op for op in OPS if op not in WITHOUT_ROWS])
def test_strided_rows_lie_apart_with_nan_between(op: str) -> None:
    case, contiguous = Case(op=op, layout="strided", seed=3), Case(op=op, layout="contiguous", seed=3)
    name = {"topk_routing": "router_logits", "unpermute": "permuted", "permute": "hidden_states"}.get(op, "x")
    name = "hidden_states" if op in ("fused_experts", "expert_outputs", *LAYERS) else name
    rows: AnyArray = case.inputs()[name]
    wide = rows.base
    assert wide is not None

    assert rows.strides[0] > rows.shape[1] * rows.itemsize
    assert rows.shape == contiguous.inputs()[name].shape
    assert np.isfinite(to_float64(rows)).all()
    assert np.isnan(to_float64(wide)[:, rows.shape[1] :]).all()


def test_an_expert_map_is_a_run_of_local_experts() -> None:
    case = Case(op="permute", num_experts=10, num_local_experts=3)
    mapped = case.inputs()["expert_map"]

    assert np.flatnonzero(mapped >= 0).tolist() == list(range(mapped.argmax() - 2, mapped.argmax() + 1))
    assert mapped[mapped >= 0].tolist() == [0, 1, 2]


def test_unpermute_rows_are_named_once() -> None:
    for load in ("random", "padding"):
        inverse = Case(op="unpermute", load=load).inputs()["inv_permuted_idx"]
        named = inverse[inverse >= 0]
        assert len(np.unique(named)) == len(named)
        assert (load == "padding") == bool((inverse < 0).any())


def test_expert_weights_are_the_same_bits_as_float64() -> None:
    case = Case(op="fused_experts", dtype="bf16")
    weights, inputs = ExpertWeights(case), case.inputs()
    for e in (0, 7):
        np.testing.assert_array_equal(weights.w13_float64(e), to_float64(inputs["w13"][e]))
        np.testing.assert_array_equal(weights.w2_float64(e), to_float64(inputs["w2"][e]))
        assert not np.array_equal(inputs["w13"][e], inputs["w13"][e - 1])


def test_only_random_weights_are_drawn_directly() -> None:
    with pytest.raises(CaseError, match="'cancelling' are not drawn directly"):
        ExpertWeights(Case(op="fused_experts", stratum="cancelling")).w13_float64(0)
