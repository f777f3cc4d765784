"""The routing reference against numbers worked by hand, as exact fractions.

Logits are logarithms of small integers n ("odds"), so that softmax is n_i / sum n and sigmoid is n / (n + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from moecheck.formats import Float64
from moecheck.references.topk_routing import (
    routed_factor,
    shared_slot_weight,
    topk_routing,
)
from moecheck.spec import RoutingSpec
from tests.bounds import U64, routing_weight_bound

ODDS = (1, 2, 3, 4)
GROUPED = RoutingSpec(
    scoring="sigmoid",
    top_k=2,
    correction_bias="select",
    num_expert_groups=3,
    topk_groups=1,
    group_score="top2_sum",
    renormalize=True,
    renorm_eps_rule="add",
    routed_scaling_factor=2.5,
)


def logits_from(odds: Sequence[int]) -> Float64:
    """One row of logits, the logarithms of the odds: [1, num_experts] float64."""
    return np.array([[math.log(n) for n in odds]])


def assert_weights(seen: Float64, expected: Sequence[Fraction], logits: Float64) -> None:
    """One row of weights equals the fractions, up to float64 rounding."""
    bound = routing_weight_bound(
        num_experts=logits.shape[1], top_k=len(expected), largest_logit=float(np.abs(logits).max()), unit=U64
    )
    assert len(seen) == len(expected)
    for value, wanted in zip(seen, expected, strict=True):
        assert abs(Fraction(value) - wanted) <= Fraction(bound) * wanted, f"weight {value}, expected {wanted}"


# id, spec, odds, bias, scale, expected ids, expected weights
TABLE = [
    pytest.param(RoutingSpec(), ODDS, None, [3, 2], [Fraction(4, 10), Fraction(3, 10)], id="softmax then top-k"),
    pytest.param(
        RoutingSpec(renormalize=True), ODDS, None, [3, 2], [Fraction(4, 7), Fraction(3, 7)], id="renormalized"
    ),
    pytest.param(
        RoutingSpec(softmax_over_selected=True),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 7), Fraction(3, 7)],
        id="top-k then softmax",
    ),
    pytest.param(
        RoutingSpec(softmax_over_selected=True, correction_bias="select"),
        ODDS,
        [9, 0, 0, 0],
        [0, 3],
        [Fraction(1, 5), Fraction(4, 5)],
        id="top-k then softmax with a bias that only chooses",
    ),
    pytest.param(RoutingSpec(scoring="sigmoid"), ODDS, None, [3, 2], [Fraction(4, 5), Fraction(3, 4)], id="sigmoid"),
    pytest.param(
        RoutingSpec(scoring="sigmoid", renormalize=True),
        ODDS,
        None,
        [3, 2],
        [Fraction(16, 31), Fraction(15, 31)],
        id="sigmoid renormalized",
    ),
    pytest.param(
        RoutingSpec(correction_bias="select"),
        ODDS,
        [1, 0, 0, 0],
        [0, 3],
        [Fraction(1, 10), Fraction(4, 10)],
        id="bias chooses and does not weigh",
    ),
    pytest.param(
        RoutingSpec(correction_bias="select"),
        ODDS,
        [-1, -1.5, -2, -3],
        [0, 1],
        [Fraction(1, 10), Fraction(2, 10)],
        id="biases of -1 and below make every choice score negative",
    ),
    pytest.param(
        RoutingSpec(correction_bias="logits"),
        ODDS,
        [math.log(8), 0, 0, 0],
        [0, 3],
        [Fraction(8, 17), Fraction(4, 17)],
        id="bias inside the logits weighs too",
    ),
    pytest.param(
        RoutingSpec(renormalize=True, renorm_eps_rule="add", renorm_eps=0.5),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 12), Fraction(3, 12)],
        id="eps added to the denominator",
    ),
    pytest.param(
        RoutingSpec(renormalize=True, renorm_eps_rule="clamp_min", renorm_eps=1.0),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 10), Fraction(3, 10)],
        id="denominator clamped from below",
    ),
    pytest.param(
        RoutingSpec(renormalize=True, renorm_eps_rule="clamp_min", renorm_eps=0.5),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 7), Fraction(3, 7)],
        id="denominator above the clamp",
    ),
    pytest.param(
        RoutingSpec(renormalize=True, renorm_eps_rule="where_positive", renorm_eps=0.5),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 7), Fraction(3, 7)],
        id="positive denominator is used as it is",
    ),
    pytest.param(
        RoutingSpec(renormalize=True, renorm_norm=2.0),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 5), Fraction(3, 5)],
        id="2-norm is 5/10",
    ),
    pytest.param(
        RoutingSpec(routed_scaling_factor=2.5),
        ODDS,
        None,
        [3, 2],
        [Fraction(1), Fraction(3, 4)],
        id="factor without renormalizing",
    ),
    pytest.param(
        RoutingSpec(routed_scaling_factor=2.5, scaling_needs_renormalize=True),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 10), Fraction(3, 10)],
        id="factor that needs renormalizing and does not get it",
    ),
    pytest.param(
        RoutingSpec(routed_scaling_factor=2.5, scaling_needs_renormalize=True, renormalize=True),
        ODDS,
        None,
        [3, 2],
        [Fraction(10, 7), Fraction(15, 14)],
        id="factor that needs renormalizing and gets it",
    ),
    pytest.param(
        RoutingSpec(routed_scaling_factor=2.5, scaling_placement="routed_output"),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 10), Fraction(3, 10)],
        id="factor left to the layer's routed output",
    ),
    pytest.param(
        RoutingSpec(routed_scaling_factor=2.5, scaling_placement="sum"),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 10), Fraction(3, 10)],
        id="factor left to the layer's sum",
    ),
    pytest.param(
        RoutingSpec(num_zero_experts=1),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 10), Fraction(3, 10)],
        id="a zero expert is chosen by its id",
    ),
    pytest.param(
        replace(GROUPED, correction_bias="none"),
        (5, 1, 3, 4, 9, 1),
        None,
        [3, 2],
        [Fraction(5, 2) * Fraction(16, 31), Fraction(5, 2) * Fraction(15, 31)],
        id="group with the best two-expert sum, not with the best expert",
    ),
    pytest.param(
        replace(GROUPED, correction_bias="none", group_score="max"),
        (5, 1, 3, 4, 9, 1),
        None,
        [4, 5],
        [Fraction(5, 2) * Fraction(9, 14), Fraction(5, 2) * Fraction(5, 14)],
        id="group with the best expert",
    ),
    pytest.param(
        GROUPED,
        (5, 1, 3, 4, 9, 1),
        [0, 2, 0, 0, 0, 0],
        [1, 0],
        [Fraction(5, 2) * Fraction(3, 8), Fraction(5, 2) * Fraction(5, 8)],
        id="bias chooses the group and the order",
    ),
    pytest.param(
        RoutingSpec(selection="sparsemixer", sparsemixer_epsilon=0.2),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 7), Fraction(3, 5)],
        id="sparsemixer: each round masks by its own threshold",
    ),
    pytest.param(
        RoutingSpec(selection="sparsemixer", sparsemixer_epsilon=0.15),
        ODDS,
        None,
        [3, 2],
        [Fraction(4, 7), Fraction(1)],
        id="sparsemixer: second round keeps one expert",
    ),
    pytest.param(
        RoutingSpec(selection="sparsemixer", top_k=1),
        ODDS,
        None,
        [3],
        [Fraction(1)],
        id="sparsemixer: usual epsilon, one round",
    ),
]


@pytest.mark.parametrize(("spec", "odds", "bias", "ids", "weights"), TABLE)
def test_hand_worked(
    spec: RoutingSpec, odds: Sequence[int], bias: list[float] | None, ids: list[int], weights: list[Fraction]
) -> None:
    logits = logits_from(odds)
    given = None if bias is None else np.array(bias)

    seen_weights, seen_ids = topk_routing(router_logits=logits, spec=spec, correction_bias=given)

    assert (str(seen_weights.dtype), str(seen_ids.dtype)) == ("float64", "int32")
    assert seen_ids.tolist() == [ids]
    assert_weights(seen_weights[0], weights, logits)


def test_softcap() -> None:
    """Soft-capping, with l chosen so that the capped logits are the logarithms of the odds."""
    cap, wanted = 2.0, logits_from(ODDS)
    logits = cap * np.arctanh(wanted / cap)

    weights, ids = topk_routing(router_logits=logits, spec=RoutingSpec(softcap=cap))

    assert ids.tolist() == [[3, 2]]
    assert_weights(weights[0], [Fraction(4, 10), Fraction(3, 10)], logits)


def test_sqrt_softplus() -> None:
    """softplus(log(e^m - 1)) = m, so m = 4 and m = 9 have the scores 2 and 3."""
    logits = np.log(np.expm1([[4.0, 1.0, 9.0]]))
    spec = RoutingSpec(scoring="sqrt_softplus", renormalize=True, routed_scaling_factor=1.5)

    weights, ids = topk_routing(router_logits=logits, spec=spec)

    assert ids.tolist() == [[2, 0]]
    assert_weights(weights[0], [Fraction(3, 2) * Fraction(3, 5), Fraction(3, 2) * Fraction(2, 5)], logits)


def test_per_expert_scale_multiplies_the_normalized_weights() -> None:
    logits, spec = logits_from(ODDS), RoutingSpec(renormalize=True, per_expert_scale=True, num_fused_shared_experts=1)

    weights, ids = topk_routing(router_logits=logits, spec=spec, per_expert_scale=np.array([9.0, 7.0, 0.5, 3.0]))

    assert ids.tolist() == [[3, 2, 4]]
    assert_weights(weights[0], [3 * Fraction(4, 7), Fraction(3, 14), Fraction(1)], logits)


def test_zero_experts_are_plain_ids() -> None:
    """The identity is the layer's business: routing gives the last ids like any other."""
    logits = logits_from(ODDS)

    with_zero = topk_routing(router_logits=logits, spec=RoutingSpec(num_zero_experts=2))
    without = topk_routing(router_logits=logits, spec=RoutingSpec())

    assert np.array_equal(with_zero[0], without[0]), "weights"
    assert np.array_equal(with_zero[1], without[1]), "ids"


PLACEMENTS = [
    pytest.param(RoutingSpec(scaling_placement="topk_weights"), id="in the weights"),
    pytest.param(RoutingSpec(scaling_placement="routed_output"), id="on the routed output"),
    pytest.param(RoutingSpec(scaling_placement="sum"), id="on the sum"),
]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("factor", [4.0, 0.5, 2.5, 2.827])
def test_net_weights_in_the_layer(placement: RoutingSpec, factor: float) -> None:
    """The routed experts' net weights add up to r, and every fused shared expert's is 1, wherever r is multiplied."""
    logits, r = logits_from(ODDS), Fraction(factor)
    spec = replace(placement, renormalize=True, routed_scaling_factor=factor, num_fused_shared_experts=2)

    weights, ids = topk_routing(router_logits=logits, spec=spec)

    layer_factor = Fraction(1) if spec.scaling_placement == "topk_weights" else r
    net = [layer_factor * Fraction(w) for w in weights[0]]
    assert ids.tolist() == [[3, 2, 4, 5]]
    assert abs(net[0] + net[1] - r) <= r * Fraction(
        routing_weight_bound(num_experts=4, top_k=2, largest_logit=2, unit=U64)
    )
    assert abs(net[2] - 1) <= Fraction(U64)  # 1/r is one rounding
    assert net[3] == net[2]
    if factor in (4.0, 0.5):  # a power of two: no rounding at all
        assert net[2] == 1


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_factor_that_does_not_apply_leaves_the_shared_slot_alone(placement: RoutingSpec) -> None:
    spec = replace(placement, routed_scaling_factor=4.0, scaling_needs_renormalize=True, num_fused_shared_experts=1)

    weights, _ = topk_routing(router_logits=logits_from(ODDS), spec=spec)

    assert routed_factor(spec) == 1
    assert shared_slot_weight(spec) == 1
    assert weights[0, 2] == 1


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_ranks_that_all_hold_the_shared_expert_share_its_weight(placement: RoutingSpec) -> None:
    """Three ranks add their outputs: the slot's net weight is 1 over all of them, the routed experts' as before."""
    spec = replace(placement, renormalize=True, routed_scaling_factor=4.0, num_fused_shared_experts=1)
    alone, _ = topk_routing(router_logits=logits_from(ODDS), spec=spec)

    weights, _ = topk_routing(router_logits=logits_from(ODDS), spec=replace(spec, shared_slot_ranks=3))

    layer_factor = 1 if spec.scaling_placement == "topk_weights" else 4
    assert np.array_equal(weights[0, :2], alone[0, :2])
    assert abs(3 * layer_factor * Fraction(weights[0, 2]) - 1) <= 2 * Fraction(U64)  # two quotients


def test_hashed_experts_are_weighed_in_the_table_s_order() -> None:
    """Odds 1, 2, 3, 4: token 7's row names experts 0 and 2, whose sigmoids are 1/2 and 3/4."""
    table = np.full((9, 2), 3)
    table[7] = [2, 0]
    spec = RoutingSpec(scoring="sigmoid", selection="hash", renormalize=True, routed_scaling_factor=2.5)

    weights, ids = topk_routing(
        router_logits=logits_from(ODDS), spec=spec, token_ids=np.array([7]), tid2eid=table.astype(np.int32)
    )

    assert ids.tolist() == [[2, 0]]
    assert_weights(weights[0], [Fraction(3, 2), Fraction(1)], logits_from(ODDS))


def test_a_hash_needs_its_table() -> None:
    with pytest.raises(ValueError, match="token_ids and tid2eid"):
        topk_routing(router_logits=logits_from(ODDS), spec=RoutingSpec(selection="hash"))
