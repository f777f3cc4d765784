"""Laws of routing that hold for any logits: shifts, relabelled experts, the order of top-k and softmax."""

from __future__ import annotations

import numpy as np

from moecheck.formats import Float64
from moecheck.references.topk_routing import topk_routing, weights_of_ids
from moecheck.spec import RoutingSpec
from tests.bounds import U64, routing_weight_bound

SHIFT = 0.7  # added to every logit: softmax must not see it
GROUPED = RoutingSpec(
    scoring="sigmoid",
    top_k=3,
    correction_bias="select",
    num_expert_groups=4,
    topk_groups=2,
    group_score="top2_sum",
    renormalize=True,
    renorm_eps_rule="add",
    routed_scaling_factor=2.5,
)


def random_logits(tokens: int = 64, experts: int = 16) -> Float64:
    return 3.0 * np.random.Generator(np.random.Philox(key=7)).standard_normal((tokens, experts))


def relative_error(seen: Float64, expected: Float64) -> float:
    return float(np.max(np.abs(seen - expected) / expected))


def test_topk_then_softmax_equals_softmax_then_topk_renormalized() -> None:
    logits = random_logits()
    bound = routing_weight_bound(num_experts=16, top_k=4, largest_logit=float(np.abs(logits).max()), unit=U64)

    before = topk_routing(router_logits=logits, spec=RoutingSpec(top_k=4, renormalize=True))
    after = topk_routing(router_logits=logits, spec=RoutingSpec(top_k=4, softmax_over_selected=True))

    assert before[1].tolist() == after[1].tolist()
    assert relative_error(after[0], before[0]) <= bound


def test_softmax_ignores_a_common_shift() -> None:
    logits = random_logits()
    bound = routing_weight_bound(num_experts=16, top_k=2, largest_logit=float(np.abs(logits).max()) + SHIFT, unit=U64)

    plain = topk_routing(router_logits=logits, spec=RoutingSpec())
    shifted = topk_routing(router_logits=logits + SHIFT, spec=RoutingSpec())

    assert plain[1].tolist() == shifted[1].tolist()
    assert relative_error(shifted[0], plain[0]) <= bound


def test_weights_do_not_depend_on_a_bias_that_only_chooses() -> None:
    logits, spec = random_logits(), GROUPED
    bias = np.linspace(-3.0, 40.0, 16)
    weights, ids = topk_routing(router_logits=logits, spec=spec, correction_bias=bias)

    same = weights_of_ids(router_logits=logits, topk_ids=ids, spec=spec, correction_bias=np.zeros(16))

    assert np.array_equal(weights, same), "weights changed with the bias"
    assert ids.tolist() != topk_routing(router_logits=logits, spec=spec, correction_bias=-bias)[1].tolist()


def test_relabelled_experts_give_relabelled_ids() -> None:
    logits, order = random_logits(), np.random.Generator(np.random.Philox(key=8)).permutation(16)

    weights, ids = topk_routing(router_logits=logits, spec=RoutingSpec(scoring="sigmoid", top_k=5))
    moved_weights, moved_ids = topk_routing(
        router_logits=logits[:, order], spec=RoutingSpec(scoring="sigmoid", top_k=5)
    )

    assert order[moved_ids].tolist() == ids.tolist()
    assert np.array_equal(moved_weights, weights), "weights changed with the labels"
