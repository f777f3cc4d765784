"""Replayed stages give the references' own values, whichever contracts came before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.formats import AnyArray, round_to
from moecheck.identify.candidates import contracts, neighbours, resolved, stores_of
from moecheck.identify.stages import compared_columns, replay_of
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import Oracle, call_reference, reference_modules
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec

TOP3 = RoutingSpec(top_k=3, renormalize=True)
CASES = [
    pytest.param("fused_experts", MoESpec(routing=TOP3), {}, id="plain"),
    pytest.param("fused_experts", MoESpec(routing=TOP3, experts=SWIGLUOAI), {}, id="GPT-OSS"),
    pytest.param("fused_experts", MoESpec(routing=TOP3, experts=ExpertSpec(w13_bias=True)), {}, id="one bias"),
    pytest.param(
        "fused_experts", MoESpec(routing=TOP3, experts=ExpertSpec(activation="relu2", gated=False)), {}, id="no gate"
    ),
    pytest.param(
        "fused_experts",
        MoESpec(routing=RoutingSpec(top_k=1), experts=ExpertSpec(weight_on_input=True)),
        {},
        id="weighted inputs",
    ),
    pytest.param(
        "fused_experts",
        MoESpec(routing=TOP3, experts=ExpertSpec(swiglu_limit=1.5, limit_position="after")),
        {"num_local_experts": 5, "map_style": "shuffled", "load": "padding"},
        id="an expert map, padding and a limit",
    ),
    pytest.param(
        "moe_layer",
        MoESpec(routing=TOP3, shared_experts="gated"),
        {"shared_intermediate_size": 24, "load": "gapped"},
        id="a gated shared expert",
    ),
    pytest.param(
        "moe_layer",
        MoESpec(
            routing=replace(TOP3, num_zero_experts=2, routed_scaling_factor=2.5, scaling_placement="routed_output"),
            shared_experts="ungated",
        ),
        {"shared_intermediate_size": 24, "load": "gapped"},
        id="zero experts and a factor on the sum",
    ),
    pytest.param(
        "moe_layer",
        MoESpec(routing=replace(TOP3, num_fused_shared_experts=1)),
        {"load": "gapped"},
        id="a fused shared expert",
    ),
    pytest.param("unpermute", MoESpec(routing=TOP3), {"load": "padding"}, id="unpermute"),
    pytest.param("act_and_mul", MoESpec(experts=SWIGLUOAI), {}, id="act_and_mul"),
    pytest.param("grouped_gemm", MoESpec(experts=ExpertSpec(w13_bias=True)), {}, id="grouped_gemm"),
]


def case_of(op: str, spec: MoESpec, changes: dict[str, object], dtype: str) -> Case:
    sizes = {"num_tokens": 5, "hidden_size": 24, "intermediate_size": 16, "dtype": dtype}
    return Case(op=op, spec=spec, **{**sizes, **changes})  # type: ignore[arg-type]  # the table above


def tried(case: Case) -> list[Numerics]:
    """Contracts of the pool, and others with formats of their own, in an order without order."""
    pool = contracts([case])
    others = [near for start in (pool[0], pool[-1]) for near in neighbours(start, stores_of(case))]
    every = list(dict.fromkeys([*pool[:: max(1, len(pool) // 15)], *others]))
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def topk_of(case: Case, oracle: Oracle, numerics: Numerics) -> tuple[AnyArray, AnyArray] | None:
    """Weights and ids as a layer with scores stored low has them; None where the layer routes as the reference does."""
    fmt = resolved(numerics, case).scores
    if fmt == "fp32":
        return None
    scores = np.exp(oracle.inputs(case)["router_logits"].astype(np.float64))
    scores = round_to(scores / scores.sum(axis=1, keepdims=True), fmt)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, : case.spec.routing.top_k]
    weights = np.take_along_axis(scores, ids, axis=1)
    weights = weights / weights.sum(axis=1, keepdims=True)
    if case.spec.routing.scaling_placement == "topk_weights":
        weights = weights * case.spec.routing.routed_scaling_factor
    shared = case.spec.routing.num_fused_shared_experts
    ids = np.hstack([ids, np.tile(case.num_experts + np.arange(shared), (len(ids), 1))])
    return np.hstack([weights, np.ones((len(ids), shared))]), ids


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("op", "spec", "changes"), CASES)
def test_a_replay_gives_the_reference_s_values(op: str, spec: MoESpec, changes: dict[str, object], dtype: str) -> None:
    case, oracle = case_of(op, spec, changes, dtype), Oracle()
    replay, function = replay_of(case, oracle), getattr(reference_modules()[op], op)
    for numerics in tried(case):
        expected = call_reference(
            function, case, oracle.inputs(case), numerics=numerics, dtype=dtype, topk=topk_of(case, oracle, numerics)
        )
        seen = replay.value(resolved(numerics, case))
        # The order of the float64 sums differs; a last place of theirs hardly ever reaches a stored bit.
        assert np.mean(np.abs(seen - expected) <= 1e-12 * np.abs(expected)) >= 0.98, numerics


@pytest.mark.parametrize(
    ("op", "spec", "changes"),
    [
        pytest.param("fused_experts", MoESpec(routing=TOP3, experts=ExpertSpec(w2_bias=True)), {}, id="experts"),
        pytest.param(
            "moe_layer",
            MoESpec(routing=TOP3, shared_experts="gated"),
            {"shared_intermediate_size": 24, "load": "gapped"},
            id="a gated shared expert",
        ),
        pytest.param(
            "moe_layer",
            MoESpec(routing=replace(TOP3, num_zero_experts=2), shared_experts="gated"),
            {"shared_intermediate_size": 24, "load": "gapped"},
            id="zero experts and a gate, all columns",
        ),
        pytest.param(
            "moe_layer", MoESpec(routing=replace(TOP3, num_zero_experts=2)), {"load": "gapped"}, id="zero experts"
        ),
    ],
)
def test_of_a_wide_output_some_columns_are_replayed(op: str, spec: MoESpec, changes: dict[str, object]) -> None:
    case, oracle = case_of(op, spec, {**changes, "hidden_size": 520}, "bf16"), Oracle()
    numerics = resolved(Numerics(gate_up=INPUT, act_times_up=INPUT), case)
    function = getattr(reference_modules()[op], op)
    expected = call_reference(function, case, oracle.inputs(case), numerics=numerics, dtype="bf16")

    assert np.array_equal(replay_of(case, oracle).value(numerics), expected[:, compared_columns(case)])


@pytest.mark.parametrize("op", ["fused_experts", "moe_layer", "unpermute", "grouped_gemm", "act_and_mul"])
def test_a_noisy_replay_is_a_kernel_with_fp32_sums(op: str) -> None:
    changes: dict[str, object] = {"load": "gapped"} if op == "moe_layer" else {}
    case, oracle = case_of(op, MoESpec(routing=TOP3), {"hidden_size": 96, **changes}, "bf16"), Oracle()
    exact, noisy = replay_of(case, oracle), replay_of(case, oracle, noisy=True)
    kept = resolved(Numerics(out="fp32"), case)
    error = np.abs(noisy.value(kept) - exact.value(kept))

    assert np.all(error <= 8 * oracle.values(case, kept).sigma)
    assert np.count_nonzero(error) >= 0.9 * error.size
    assert np.mean(noisy.value(resolved(Numerics(), case)) == exact.value(resolved(Numerics(), case))) >= 0.98
