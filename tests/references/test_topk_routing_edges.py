"""The routing reference where rows are degenerate: underflow, NaN and Inf, ties, masks, padding, missing arrays."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moecheck.errors import SpecError
from moecheck.formats import AnyArray, Float64
from moecheck.references.topk_routing import (
    group_scores,
    mask_groups,
    scores_of,
    topk_routing,
    weights_of_ids,
)
from moecheck.spec import EpsRule, GroupMask, GroupScore, RoutingSpec
from tests.bounds import U64, routing_weight_bound

NAN, INF = np.nan, np.inf
R1, R2 = RoutingSpec(), RoutingSpec(renormalize=True, renorm_eps_rule="where_positive")
R3 = RoutingSpec(softmax_over_selected=True)
SIGMOID = RoutingSpec(scoring="sigmoid")
MIXER = RoutingSpec(selection="sparsemixer")


@pytest.mark.parametrize(
    ("rule", "eps", "weight"),
    [
        pytest.param("none", 0.0, NAN, id="none: 0/0 is NaN"),
        pytest.param("add", 1e-20, 0.0, id="add: 0/eps is 0"),
        pytest.param("clamp_min", 1e-12, 0.0, id="clamp_min: 0/eps is 0"),
        pytest.param("where_positive", 0.0, 0.0, id="where_positive: 0/1 is 0"),
    ],
)
def test_all_scores_underflow(rule: EpsRule, eps: float, weight: float) -> None:
    """sigmoid(-800) is 0 in float64; the shared slot is not touched by the rule."""
    spec = RoutingSpec(
        scoring="sigmoid", renormalize=True, renorm_eps_rule=rule, renorm_eps=eps, num_fused_shared_experts=1
    )

    weights, ids = topk_routing(router_logits=np.full((1, 4), -800.0), spec=spec)

    assert ids.tolist() == [[0, 1, 4]]
    assert np.array_equal(weights, [[weight, weight, 1.0]], equal_nan=True), weights


def test_sigmoid_that_underflows_in_float32_is_still_normalized() -> None:
    weights, _ = topk_routing(
        router_logits=np.full((1, 4), -200.0), spec=RoutingSpec(scoring="sigmoid", renormalize=True)
    )

    assert weights.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("spec", "row", "ids", "weights"),
    [
        pytest.param(R1, [1, NAN, 2, 3], [0, 1], [0, 0], id="softmax with one NaN: the row is undefined"),
        pytest.param(R1, [1, INF, 2, 3], [0, 1], [0, 0], id="softmax with +Inf: the row is undefined"),
        pytest.param(R1, [NAN] * 4, [0, 1], [0, 0], id="softmax of NaN only"),
        pytest.param(R1, [-INF] * 4, [0, 1], [0, 0], id="softmax of -Inf only"),
        pytest.param(R1, [-INF, 0, -INF, 0], [1, 3], [0.5, 0.5], id="softmax with experts switched off by -Inf"),
        pytest.param(R2, [1, NAN, 2, 3], [0, 1], [0, 0], id="renormalized softmax with one NaN"),
        pytest.param(R3, [1, NAN, 2, 3], [0, 1], [0, 0], id="top-k then softmax with one NaN"),
        pytest.param(R3, [1, INF, 2, 3], [0, 1], [0, 0], id="top-k then softmax with +Inf"),
        pytest.param(R3, [-INF] * 4, [0, 1], [0, 0], id="top-k then softmax of -Inf only"),
        pytest.param(R3, [-INF, 0, -INF, 0], [1, 3], [0.5, 0.5], id="top-k then softmax with -Inf experts"),
        pytest.param(R3, [-INF, -9, -INF, -INF], [1, 0], [1, 0], id="top-k then softmax, one expert left"),
        pytest.param(SIGMOID, [NAN, 0, NAN, NAN], [1, 0], [0.5, 0], id="sigmoid: only the NaN expert counts as 0"),
        pytest.param(SIGMOID, [0, INF, 0, -INF], [1, 0], [1, 0.5], id="sigmoid of +-Inf is 1 and 0"),
        pytest.param(SIGMOID, [NAN] * 4, [0, 1], [0, 0], id="sigmoid of NaN only"),
        pytest.param(
            RoutingSpec(scoring="sqrt_softplus"),
            [INF, -INF, NAN, -900],
            [0, 1],
            [0, 0],
            id="sqrt(softplus(+Inf)) is Inf",
        ),
        pytest.param(MIXER, [1, NAN, 2, 3], [0, 1], [0, 0], id="sparsemixer with one NaN"),
        pytest.param(MIXER, [INF, INF, INF, INF], [0, 1], [0, 0], id="sparsemixer of +Inf only"),
        pytest.param(MIXER, [-INF, -INF, 7, -INF], [2, 0], [1, 0], id="sparsemixer, one expert left"),
        pytest.param(MIXER, [0, 0, -INF, -5], [0, 1], [0.5, 1], id="sparsemixer: 0/0 is not above the threshold"),
    ],
)
def test_non_finite_rows(spec: RoutingSpec, row: list[float], ids: list[int], weights: list[float]) -> None:
    logits = np.array([row, [0.0, 1.0, 2.0, 3.0]])

    seen_weights, seen_ids = topk_routing(router_logits=logits, spec=spec)
    alone_weights, alone_ids = topk_routing(router_logits=logits[1:], spec=spec)

    assert seen_ids[0].tolist() == ids
    assert seen_weights[0].tolist() == weights
    assert seen_ids[1].tolist() == alone_ids[0].tolist(), "a degenerate row changed its neighbour's ids"
    assert seen_weights[1].tolist() == alone_weights[0].tolist(), "a degenerate row changed its neighbour's weights"


def test_sparsemixer_measures_negative_logits_by_their_own_size() -> None:
    """Logits -log 2, -log 4, -log 8: (m - l) / max(|l|, m) is 1/2 and 2/3 in the first round, 1/3 in the second."""
    spec = RoutingSpec(selection="sparsemixer", sparsemixer_epsilon=0.3)
    logits = np.log([[0.125, 0.5, 0.25]])

    weights, ids = topk_routing(router_logits=logits, spec=spec)

    bound = routing_weight_bound(num_experts=3, top_k=2, largest_logit=float(np.abs(logits).max()), unit=U64)
    assert ids.tolist() == [[1, 2]]
    assert np.max(np.abs(weights * 3 / 2 - 1)) <= bound


def test_choosing_by_logits_adds_the_bias_to_the_logits() -> None:
    """The bias of 1.2 beats a sigmoid (0.8) but not a logit (log 4 - log 1 = 1.39)."""
    logits, bias = np.log([[1.0, 2.0, 3.0, 4.0]]), np.array([1.2, 0.0, 0.0, 0.0])
    by_scores = RoutingSpec(scoring="sigmoid", correction_bias="select")
    by_logits = RoutingSpec(scoring="sigmoid", correction_bias="select", choose_by_logits=True)

    assert topk_routing(router_logits=logits, spec=by_scores, correction_bias=bias)[1].tolist() == [[0, 3]]
    weights, ids = topk_routing(router_logits=logits, spec=by_logits, correction_bias=bias)

    assert ids.tolist() == [[3, 0]]
    assert np.max(np.abs(weights / [[0.8, 0.5]] - 1)) <= routing_weight_bound(
        num_experts=4, top_k=2, largest_logit=float(np.abs(logits).max()), unit=U64
    )


def test_biased_nan_row_has_distinct_ids_chosen_by_the_bias() -> None:
    spec = RoutingSpec(scoring="sigmoid", top_k=3, correction_bias="select")

    weights, ids = topk_routing(
        router_logits=np.full((1, 4), NAN), spec=spec, correction_bias=np.array([-1.0, 3.0, -1.0, 2.0])
    )

    assert ids.tolist() == [[1, 3, 0]]
    assert weights.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("row", "top_k", "ids"),
    [
        pytest.param([5, 5, 5, 5], 3, [0, 1, 2], id="all equal"),
        pytest.param([1, 7, 1, 7], 3, [1, 3, 0], id="two pairs"),
        pytest.param([0.0, -0.0, 0.0, -0.0], 4, [0, 1, 2, 3], id="signed zeros are equal"),
    ],
)
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
def test_ties_go_to_the_lowest_id(row: list[float], top_k: int, ids: list[int], scoring: str) -> None:
    spec = RoutingSpec(top_k=top_k, scoring=scoring)  # type: ignore[arg-type]  # a Scoring by construction

    assert topk_routing(router_logits=np.array([row]), spec=spec)[1].tolist() == [ids]


def test_tied_groups_go_to_the_lowest_group() -> None:
    spec = RoutingSpec(num_expert_groups=3, topk_groups=1, group_score="top2_sum")

    assert topk_routing(router_logits=np.array([[0.0, 0, 1, 2, 2, 1]]), spec=spec)[1].tolist() == [[3, 2]]


CHOICE = np.array([[4.0, -9.0, 3.0, 2.0, -1.0, -2.0]])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [pytest.param("max", [[4, 3, -1]], id="max"), pytest.param("top2_sum", [[-5, 5, -3]], id="top2_sum")],
)
def test_group_scores(rule: GroupScore, expected: list[list[float]]) -> None:
    spec = RoutingSpec(num_expert_groups=3, group_score=rule)

    assert group_scores(CHOICE, spec=spec).tolist() == expected


@pytest.mark.parametrize(
    ("mask", "groups", "expected"),
    [
        pytest.param("neg_inf", 1, [[-INF, -INF, 3, 2, -INF, -INF]], id="-Inf, one group"),
        pytest.param("zero", 1, [[0, 0, 3, 2, 0, 0]], id="0, one group"),
        pytest.param("neg_inf", 2, [[-INF, -INF, 3, 2, -1, -2]], id="-Inf, two groups"),
    ],
)
def test_mask_groups(mask: GroupMask, groups: int, expected: list[list[float]]) -> None:
    spec = RoutingSpec(num_expert_groups=3, topk_groups=groups, group_score="top2_sum", group_mask=mask)

    assert mask_groups(CHOICE, spec=spec).tolist() == expected


@pytest.mark.parametrize(
    ("mask", "ids"),
    [
        pytest.param("neg_inf", [3, 2], id="-Inf keeps the best group"),
        pytest.param("zero", [0, 1], id="0 beats negative choice scores"),
    ],
)
def test_group_mask_with_negative_choice_scores(mask: GroupMask, ids: list[int]) -> None:
    """With a bias of -2 every choice score is negative, and a mask of 0 lets the masked experts win."""
    spec = RoutingSpec(
        scoring="sigmoid", correction_bias="select", num_expert_groups=2, group_score="top2_sum", group_mask=mask
    )

    weights, seen = topk_routing(
        router_logits=np.array([[0.0, 0.0, 1.0, 2.0]]), spec=spec, correction_bias=np.full(4, -2.0)
    )

    assert seen.tolist() == [ids]
    assert np.all(weights > 0), "weights come from the unmasked scores"


def test_scores_never_contain_a_bias_that_only_chooses() -> None:
    scores, choice = scores_of(
        router_logits=np.zeros((1, 4)),
        spec=RoutingSpec(correction_bias="select"),
        correction_bias=np.array([-2.0, 0, 0, 40]),
    )

    assert scores.tolist() == [[0.25] * 4]
    assert choice.tolist() == [[-1.75, 0.25, 0.25, 40.25]]


@pytest.mark.parametrize(
    ("spec", "ids", "weights"),
    [
        pytest.param(SIGMOID, [-1, 2], [0, 0.5], id="scores"),
        pytest.param(RoutingSpec(scoring="sigmoid", renormalize=True), [-1, 2], [0, 1], id="not in the norm"),
        pytest.param(RoutingSpec(renormalize=True), [-1, -1], [0, 0], id="whole row, although 0/0 is NaN"),
        pytest.param(R3, [2, -1], [1, 0], id="not in the softmax over the selected"),
        pytest.param(R3, [-1, -1], [0, 0], id="whole row, top-k then softmax"),
        pytest.param(MIXER, [-1, 2], [0, 0.25], id="sparsemixer: nobody left"),
        pytest.param(RoutingSpec(num_fused_shared_experts=1), [1, 2, 4], [0.25, 0.25, 1], id="none, shared slot"),
        pytest.param(RoutingSpec(num_fused_shared_experts=1), [-1, -1, -1], [0, 0, 0], id="whole row, shared slot"),
    ],
)
def test_padding_ids_weigh_nothing(spec: RoutingSpec, ids: list[int], weights: list[float]) -> None:
    seen = weights_of_ids(router_logits=np.zeros((1, 4)), topk_ids=np.array([ids]), spec=spec)

    assert seen.tolist() == [weights]


@pytest.mark.parametrize("bad", [pytest.param(5, id="above the last shared slot"), pytest.param(-2, id="below -1")])
def test_ids_out_of_range_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="between -1 and 4"):
        weights_of_ids(
            router_logits=np.zeros((1, 4)), topk_ids=np.array([[0, bad]]), spec=RoutingSpec(num_fused_shared_experts=1)
        )


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        pytest.param(RoutingSpec(correction_bias="select"), "correction_bias", id="bias that chooses"),
        pytest.param(RoutingSpec(correction_bias="logits"), "correction_bias", id="bias in the logits"),
        pytest.param(RoutingSpec(per_expert_scale=True), "per_expert_scale", id="per-expert scale"),
    ],
)
def test_a_missing_array_is_named(spec: RoutingSpec, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        topk_routing(router_logits=np.zeros((1, 4)), spec=spec)


def test_top_k_above_num_experts_is_refused() -> None:
    with pytest.raises(SpecError, match="top_k=5 must be ≤ num_experts=4"):
        topk_routing(router_logits=np.zeros((1, 4)), spec=RoutingSpec(top_k=5))


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("spec", [R1, R2, R3, MIXER, RoutingSpec(num_expert_groups=2, num_fused_shared_experts=1)])
def test_few_tokens(tokens: int, spec: RoutingSpec) -> None:
    weights, ids = topk_routing(router_logits=np.zeros((tokens, 4)), spec=spec)

    assert weights.shape == ids.shape == (tokens, 2 + spec.num_fused_shared_experts)


def storage(values: Float64, name: str) -> AnyArray:
    return values.astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_arithmetic_is_float64_on_the_stored_bits(name: str) -> None:
    logits = storage(np.array([[0.1, 1.7, -0.3, 1.1]]), name)
    before = logits.copy()

    weights, ids = topk_routing(router_logits=logits, spec=R2)
    wide_weights, wide_ids = topk_routing(router_logits=logits.astype(np.float64), spec=R2)

    assert (weights.tolist(), ids.tolist()) == (wide_weights.tolist(), wide_ids.tolist())
    assert logits.tobytes() == before.tobytes(), "the input was modified"
