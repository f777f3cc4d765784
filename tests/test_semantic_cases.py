"""The cases of rarer semantics: what they reach, that honest outputs pass them and outputs of other semantics fail."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.curated import SEMANTIC, cases_for
from moecheck.curated_semantics import SEMANTICS
from moecheck.formats import AnyArray
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.semantic_strategies import EXPERTS, KINDS, OPS, semantic_cases
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec
from moecheck.strategies import draw_cases
from tests.checks.honest import honest_outputs, verdict_of

# What needs no row of its own in docs/semantics.md, or has its own document.
PLAIN_FIELDS = {"top_k", "routing", "experts", "quantization"}
NAMED = [case for op in SEMANTICS for case in cases_for(op, profile="quick", seed=0, examples=0)]
NAMED = [case for case in NAMED if case.name in {row[0] for row in SEMANTICS[case.op]}]


def judged(case: Case, outputs: tuple[AnyArray, ...], oracle: Oracle) -> Verdict:
    return verdict_of(judge(case, outputs, oracle, Limits(), Numerics(out="fp32") if case.op == OPS[0] else None))


@pytest.mark.parametrize("case", NAMED, ids=lambda case: f"{case.op}: {case.name}")
def test_an_honest_kernel_passes(case: Case) -> None:
    oracle = Oracle()

    assert judged(case, honest_outputs(case, oracle), oracle) is Verdict.PASS


# name of a case -> what a kernel that ignores the rule in question would compute instead
IGNORED: dict[str, MoESpec | RoutingSpec | ExpertSpec] = {
    "capped-biased-logits": RoutingSpec(top_k=4, correction_bias="logits"),
    "sigmoid-of-chosen-logits": RoutingSpec(top_k=4, scoring="softmax", renormalize=True),
    "two-norm": RoutingSpec(top_k=4, renormalize=True),
    "divisor-from-below": RoutingSpec(top_k=2, correction_bias="select", renormalize=True),
    "factor-needs-normalising": RoutingSpec(top_k=4, routed_scaling_factor=2.5),
    "shared-slot-on-ranks": RoutingSpec(
        top_k=4, renormalize=True, routed_scaling_factor=2.5, num_fused_shared_experts=1
    ),
    "situ": ExpertSpec(),
    "situ-both": ExpertSpec(activation="situ", situ_beta=2.0),
    "silu-no-mul": ExpertSpec(activation="gelu", gated=False),
    "gelu-no-mul": ExpertSpec(activation="gelu_tanh", gated=False),
    "swigluoai-halves": ExpertSpec(swiglu_alpha=1.702, swiglu_limit=7.0),
}


@pytest.mark.parametrize(
    "case",
    [case for case in NAMED if case.name in IGNORED and case.op in ("topk_routing", "act_and_mul")],
    ids=lambda case: case.name,
)
def test_a_kernel_that_ignores_the_rule_fails(case: Case) -> None:
    other = IGNORED[case.name]
    field = "routing" if isinstance(other, RoutingSpec) else "experts"
    wrong = replace(case, spec=replace(case.spec, **{field: other}))  # type: ignore[arg-type]  # of the field's type
    oracle = Oracle(load=lambda _: case.inputs())

    assert judged(case, honest_outputs(wrong, oracle), oracle) in FAILURES


LAYERS = {case.name: case for case in NAMED if case.op == "moe_layer"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("layer-residual", {"sum_factor": 1.0}, id="no division by the root of 2"),
        pytest.param("layer-two-limits", {"shared_spec": None}, id="the routed experts' limit for the shared one"),
        pytest.param(
            "layer-latent",
            {"routing": replace(LAYERS["layer-latent"].spec.routing, routed_scaling_factor=1.0)},
            id="no factor",
        ),
    ],
)
def test_a_layer_that_ignores_the_rule_fails(name: str, changes: dict[str, object]) -> None:
    case = LAYERS[name]
    wrong = replace(case, spec=replace(case.spec, **changes))  # type: ignore[arg-type]  # fields of MoESpec
    oracle = Oracle(load=lambda _: case.inputs())

    assert judged(case, honest_outputs(wrong, oracle), oracle) in FAILURES


def test_a_hashed_choice_is_exact() -> None:
    """Other experts than the table's are wrong, even those that the scores would choose."""
    case = next(case for case in NAMED if case.name == "hashed")
    oracle = Oracle()
    weights, ids = honest_outputs(case, oracle)
    chosen = replace(case, spec=replace(case.spec, routing=replace(case.spec.routing, selection="topk")))
    other = Oracle(load=lambda _: oracle.inputs(case))

    assert judged(case, (weights[:, ::-1], ids[:, ::-1]), oracle) is Verdict.PASS, "the order of slots"
    assert judged(case, honest_outputs(chosen, other), oracle) is Verdict.PROVEN_WRONG


def test_slots_without_an_expert_may_hold_anything_and_others_may_not() -> None:
    case = next(
        case for case in cases_for("expert_outputs", profile="quick", seed=0) if case.name == "expert-map-padding"
    )
    oracle = Oracle()
    (out,) = honest_outputs(case, oracle)
    empty = np.isnan(out.astype(np.float64)).all(axis=2)
    garbage, damaged = out.copy(), out.copy()
    garbage[empty] = 7.0
    token, slot = np.argwhere(~empty)[0]
    damaged[token, slot] = 0.0

    assert empty.any()
    assert judged(case, (garbage,), oracle) is Verdict.PASS
    assert judged(case, (damaged,), oracle) in FAILURES


def test_padding_of_weight_0_names_expert_0() -> None:
    case = Case(op="fused_experts", load="padding_zero", num_tokens=64)
    inputs = case.inputs()
    padded = (inputs["topk_ids"] == 0).all(axis=1)

    assert 0 < padded.sum() < 64
    assert not inputs["topk_weights"][padded].any()
    assert inputs["topk_weights"][~padded].any(axis=1).all()


@pytest.mark.parametrize("op", OPS)
def test_drawn_cases_are_the_same_again_and_none_are_in_the_quick_profile(op: str) -> None:
    first, again = (draw_cases(semantic_cases(op), 30, 1) for _ in range(2))

    assert first == again
    assert SEMANTIC["quick"] == {}
    assert all(count for count in (SEMANTIC["default"][op], SEMANTIC["nightly"][op]))


def test_drawn_cases_reach_every_kind() -> None:
    routings = [case.spec.routing for case in draw_cases(semantic_cases("topk_routing"), 200, 0)]
    layers = [case.spec for case in draw_cases(semantic_cases("moe_layer"), 100, 0)]
    seen = {
        "divisor": any(r.renorm_norm == 2.0 for r in routings),
        "hash": any(r.selection == "hash" for r in routings),
        "biased_logits": any(r.correction_bias == "logits" and r.softcap for r in routings),
        "chosen_logits": any(r.choose_by_logits and r.scoring == "sigmoid" for r in routings),
        "groups": any(r.group_mask == "zero" for r in routings),
        "sparsemixer": any(r.selection == "sparsemixer" for r in routings),
        "scaling": any(r.scaling_needs_renormalize and not r.renormalize for r in routings),
        "special_experts": any(r.shared_slot_ranks > 1 or r.num_zero_experts for r in routings),
    }

    assert set(seen) == set(KINDS)
    assert all(seen.values()), seen
    assert {spec.experts for spec in layers} >= set(EXPERTS)
    assert any(spec.latent_experts and spec.sum_factor != 1.0 for spec in layers)
    assert any(spec.shared_spec is not None for spec in layers)


def test_the_document_names_every_field_and_every_case() -> None:
    text = (Path(__file__).parent.parent / "docs" / "semantics.md").read_text(encoding="utf-8")
    parts = {f.name for record in (RoutingSpec, ExpertSpec, MoESpec) for f in fields(record)}
    names = {row[0] for rows in SEMANTICS.values() for row in rows}

    assert sorted(name for name in parts - PLAIN_FIELDS if name not in text) == []
    assert sorted(name for name in names - {"swigluoai-biases"} if name not in text) == []
