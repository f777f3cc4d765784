"""topk_routing in PyTorch and transformers' routers against the reference's legal sets and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moecheck import RoutingSpec, Unsupported
from moecheck.formats import to_float64
from moecheck.kernels.third_party import transformers_routers as routers
from moecheck.kernels.torch.packed_routing import packed_topk_routing
from moecheck.kernels.torch.routing import topk_routing
from moecheck.references.topk_routing import topk_routing as reference
from moecheck.references.topk_routing import weights_of_ids
from moecheck.spec import Scoring
from tests.bounds import U32, routing_weight_bound
from tests.kernels.experts_case import Kernel, name_of
from tests.kernels.routing_cases import LARGEST, NOAUX, OVER_SELECTED, SPARSE, SPECS, UNGROUPED, routing_inputs
from tests.kernels.torch_bridge import to_torch

LIBRARY = (
    (routers.mixtral, RoutingSpec(top_k=4, renormalize=True)),
    (routers.qwen3_moe, RoutingSpec(top_k=4, renormalize=True)),
    (routers.qwen3_moe, RoutingSpec(top_k=4)),
    (routers.olmoe, RoutingSpec(top_k=8)),
    (routers.deepseek_v2, RoutingSpec(routed_scaling_factor=16)),
    (routers.deepseek_v2, SPECS["group_limited_greedy"]),
    (routers.deepseek_v3, NOAUX),
    (routers.glm4_moe, NOAUX),
    (
        routers.deepseek_v4,
        RoutingSpec(
            top_k=4,
            scoring="sqrt_softplus",
            correction_bias="select",
            renormalize=True,
            renorm_eps=1e-20,
            renorm_eps_rule="add",
            routed_scaling_factor=1.5,
        ),
    ),
    (routers.minimax_m2, UNGROUPED),
    (
        routers.ernie4_5_moe,
        RoutingSpec(correction_bias="select", renormalize=True, renorm_eps=1e-12, renorm_eps_rule="clamp_min"),
    ),
    (routers.gpt_oss, OVER_SELECTED),
    (routers.granitemoe, OVER_SELECTED),
    (routers.phimoe, SPARSE),
)


def check(kernel: Kernel, spec: RoutingSpec, *, tokens: int, experts: int) -> None:
    arrays: dict[str, Any] = dict(routing_inputs(spec, tokens=tokens, experts=experts))
    weights, ids = kernel(**{name: to_torch(values) for name, values in arrays.items()}, spec=spec)
    _, expected_ids = reference(**arrays, spec=spec)
    assert weights.dtype == torch.float32
    assert ids.dtype == torch.int32
    assert np.array_equal(np.sort(ids.numpy(), axis=1), np.sort(expected_ids, axis=1))
    expected = weights_of_ids(topk_ids=ids.numpy(), spec=spec, **arrays)
    bound = routing_weight_bound(num_experts=experts, top_k=spec.top_k, largest_logit=LARGEST, unit=U32)
    assert np.all(np.abs(to_float64(weights.numpy()) - expected) <= bound * np.abs(expected))


@pytest.mark.parametrize("sizes", [(17, 60), (1, 8), (0, 16), (5, 256)], ids=str)
@pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in SPECS.items()])
def test_torch_routing_agrees_with_the_reference(spec: RoutingSpec, sizes: tuple[int, int]) -> None:
    check(topk_routing, spec, tokens=sizes[0], experts=sizes[1])


@pytest.mark.parametrize("sizes", [(17, 60), (0, 16), (5, 256)], ids=str)
@pytest.mark.parametrize(("kernel", "spec"), LIBRARY, ids=name_of)
def test_library_routers_agree_with_the_reference(kernel: Kernel, spec: RoutingSpec, sizes: tuple[int, int]) -> None:
    check(kernel, spec, tokens=sizes[0], experts=sizes[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_give_the_reference_s_ids(bad: float) -> None:
    logits = np.tile(np.linspace(-1, 1, 8, dtype=np.float32), (3, 1))
    logits[0, 5], logits[1] = bad, bad
    for spec in (RoutingSpec(), RoutingSpec(scoring="sigmoid"), RoutingSpec(softmax_over_selected=True)):
        weights, ids = topk_routing(router_logits=to_torch(logits), spec=spec)
        expected, expected_ids = reference(router_logits=logits, spec=spec)
        assert np.array_equal(ids.numpy(), expected_ids)
        assert np.array_equal(weights.numpy() == 0, expected == 0)


def test_equal_scores_go_to_the_lowest_ids() -> None:
    _, ids = topk_routing(router_logits=torch.zeros(3, 40), spec=RoutingSpec(top_k=3))
    assert ids.tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("kernel", "spec", "reason"),
    [
        pytest.param(routers.mixtral, RoutingSpec(), "renormalize=True, not False", id="Mixtral always renormalises"),
        pytest.param(routers.olmoe, RoutingSpec(scoring="sigmoid"), "scoring='softmax'", id="OLMoE has no sigmoid"),
        pytest.param(routers.gpt_oss, RoutingSpec(softcap=30.0), "softcap=None", id="GPT-OSS has no softcap"),
    ],
)
def test_a_spec_of_another_model_is_declined(kernel: Kernel, spec: RoutingSpec, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        kernel(router_logits=torch.zeros(2, 8), spec=spec)


def test_library_routers_decline_non_finite_logits() -> None:
    with pytest.raises(Unsupported, match="matrix product"):
        routers.olmoe(router_logits=torch.full((1, 8), torch.inf), spec=RoutingSpec())


def test_a_bias_that_is_not_given_is_declined() -> None:
    with pytest.raises(Unsupported, match="correction_bias"):
        topk_routing(router_logits=torch.zeros(1, 8), spec=UNGROUPED)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("kernel", [topk_routing, packed_topk_routing], ids=name_of)
def test_none_promises_batch_invariance_that_torch_s_elementwise_functions_break(
    kernel: Kernel, scoring: Scoring
) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(0.0, 5.0, (77, 8)).astype(np.float32))
    spec = RoutingSpec(top_k=6, scoring=scoring)
    whole, _ = kernel(router_logits=logits, spec=spec)
    halves = [kernel(router_logits=logits[:rows], spec=spec)[0] for rows in range(1, 77)]
    same = all(torch.equal(half, whole[: len(half)]) for half in halves)
    promised = kernel.__moecheck__.batch_invariant  # type: ignore[attr-defined]
    assert same or not promised
