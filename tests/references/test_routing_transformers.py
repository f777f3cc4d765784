"""The routing reference against the routers of transformers' own modelling code.

A router computes logits = x W^T; with W the identity the logits that we feed are exactly those that it sees.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # after the skips

from moecheck.formats import Float64
from moecheck.references.topk_routing import Int32, scores_of, topk_routing
from moecheck.spec import RoutingSpec
from tests.bounds import U32, routing_weight_bound
from tests.references.families import FAMILIES, NUM_EXPERTS, Family, Module, choice_bias

TOKENS = 64


def random_logits() -> Float64:
    """float32 numbers, [TOKENS, NUM_EXPERTS]; a third of the rows so close together that no sparsemixer weight is 1."""
    draw: Float64 = np.random.Generator(np.random.Philox(key=11)).standard_normal((TOKENS, NUM_EXPERTS))
    draw[::3] = 3.0 + draw[::3] / 8.0
    return (2.0 * draw).astype(np.float32).astype(np.float64)


def as_float64(tensor: torch.Tensor) -> Float64:
    """A tensor's values as float64."""
    return np.asarray(tensor.double().numpy(), dtype=np.float64)


def with_identity(family: Family) -> Module:
    """The family's router with the identity for its weight matrix, and nothing else in the way of the logits."""
    router = family.build(family.router, family.build_config(NUM_EXPERTS))
    matrices = [value for value in router.parameters() if tuple(value.shape) == (NUM_EXPERTS, NUM_EXPERTS)]
    assert len(matrices) == 1
    matrices[0].copy_(torch.eye(NUM_EXPERTS))
    for name, value in router.named_parameters():
        if name == "bias":
            value.copy_(torch.tensor(choice_bias()))
    return router


def seen_logits(router: Module, hidden: torch.Tensor) -> Float64:
    """Logits as the router has them: Gemma-4's are its projection's output, GPT-OSS's contain a bias."""
    if isinstance(getattr(router, "bias", None), torch.Tensor):
        hidden = hidden + router.bias
    if not hasattr(router, "proj"):
        return as_float64(hidden)
    caught: list[torch.Tensor] = []
    handle = router.proj.register_forward_hook(lambda module, args, output: caught.append(output))
    router(hidden)
    handle.remove()
    return as_float64(caught[0])


def bias_of(spec: RoutingSpec) -> Float64:
    """As large as the scores that it competes with: [NUM_EXPERTS], float32 numbers."""
    size = 1.0 / NUM_EXPERTS if spec.scoring == "softmax" else 1.0
    return (size * choice_bias()).astype(np.float32).astype(np.float64)


def by_expert(weights: Float64, ids: Int32) -> Float64:
    """Weights moved to their experts' columns, NaN where an expert is not chosen: [TOKENS, NUM_EXPERTS]."""
    table = np.full((len(ids), NUM_EXPERTS), np.nan)
    np.put_along_axis(table, ids.astype(np.int64), weights, axis=1)
    return table


@pytest.mark.parametrize("name", FAMILIES)
def test_router(name: str) -> None:
    family = FAMILIES[name]

    check(family, random_logits(), bias_of(family.routing))


@pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if family.routing.correction_bias != "none"]
)
def test_router_with_negative_choice_scores(name: str) -> None:
    """With every choice score below 0 a group mask of 0 would let the masked experts win."""
    family = FAMILIES[name]

    check(family, random_logits(), bias_of(family.routing) - 3.0)


@pytest.mark.parametrize(
    "name",
    [name for name, family in FAMILIES.items() if family.routing.renorm_eps_rule == "add" and name != "Mistral-4"],
)
def test_router_with_scores_as_small_as_eps(name: str) -> None:
    """Scores about eps, where adding it to their sum is felt; a softmax (Mistral-4) has no such rows.

    For sqrt(softplus) a little above it: softplus must stay a normal float32 number, 1e-20 squared is not.
    """
    family = FAMILIES[name]
    power = 1.83 if family.routing.scoring == "sqrt_softplus" else 1.0
    logits = random_logits() / 4.0 + power * np.log(family.routing.renorm_eps)

    check(family, logits.astype(np.float32).astype(np.float64), bias_of(family.routing))


def check(family: Family, fed: Float64, bias: Float64) -> None:
    """The family's router and the reference choose the same experts and give them the same weights."""
    spec = family.routing
    router, hidden = with_identity(family), torch.tensor(fed, dtype=torch.float32)
    scale = np.linspace(0.5, 2.0, NUM_EXPERTS).astype(np.float32)
    if spec.per_expert_scale:
        router.per_expert_scale.copy_(torch.tensor(scale))
    logits = seen_logits(router, hidden)

    torch_weights, torch_ids = family.route(router, hidden, torch.tensor(bias, dtype=torch.float32))
    weights, ids = topk_routing(router_logits=logits, spec=spec, correction_bias=bias, per_expert_scale=scale)

    assert tuple(torch_ids.shape) == ids.shape
    assert np.sort(torch_ids.numpy(), axis=1).tolist() == np.sort(ids, axis=1).tolist()
    seen = by_expert(as_float64(torch_weights), torch_ids.numpy().astype(np.int32))
    expected = by_expert(weights, ids)
    bound = routing_weight_bound(
        num_experts=NUM_EXPERTS, top_k=spec.top_k, largest_logit=float(np.abs(logits).max()), unit=U32
    )
    chosen = ~np.isnan(expected)
    assert np.all(expected[chosen] > 0)
    assert np.max(np.abs(seen - expected)[chosen] / expected[chosen]) <= bound


@pytest.mark.parametrize("name", FAMILIES)
def test_a_wrong_spec_is_seen(name: str) -> None:
    """The inputs tell each family's rule from a plain softmax without bias, groups and factor."""
    spec = FAMILIES[name].routing
    logits, bias, scale = random_logits(), bias_of(spec), np.linspace(0.5, 2.0, NUM_EXPERTS)
    plain = RoutingSpec(top_k=spec.top_k, renormalize=not spec.renormalize and not spec.softmax_over_selected)

    weights, ids = topk_routing(router_logits=logits, spec=spec, correction_bias=bias, per_expert_scale=scale)
    plain_weights, plain_ids = topk_routing(router_logits=logits, spec=plain)

    bound = routing_weight_bound(num_experts=NUM_EXPERTS, top_k=spec.top_k, largest_logit=16.0, unit=U32)
    assert np.any(ids != plain_ids) or np.max(np.abs(weights - plain_weights) / weights) > bound


def test_hash_router_weighs_ids_from_a_table() -> None:
    """DeepSeek-V4's first layers look the ids up by token; the weights still come from the gate, without the bias."""
    family = FAMILIES["DeepSeek-V4"]
    config = family.build_config(NUM_EXPERTS, vocab_size=TOKENS)
    router = family.build("DeepseekV4HashRouter", config)
    router.weight.copy_(torch.eye(NUM_EXPERTS))
    draw = np.random.Generator(np.random.Philox(key=12))
    ids = np.argsort(draw.random((TOKENS, NUM_EXPERTS)), axis=1)[:, : family.routing.top_k]
    router.tid2eid.copy_(torch.tensor(ids))
    logits = random_logits()

    token_ids = np.roll(np.arange(TOKENS), 5)
    _, seen, seen_ids = router(torch.tensor(logits, dtype=torch.float32), torch.tensor(token_ids))
    spec = replace(family.routing, selection="hash", correction_bias="none")
    expected, chosen = topk_routing(router_logits=logits, spec=spec, token_ids=token_ids, tid2eid=ids)

    bound = routing_weight_bound(
        num_experts=NUM_EXPERTS, top_k=family.routing.top_k, largest_logit=float(np.abs(logits).max()), unit=U32
    )
    assert seen_ids.tolist() == chosen.tolist() == ids[token_ids].tolist()
    assert np.max(np.abs(as_float64(seen) - expected) / expected) <= bound


def test_the_groups_exclude_somebody() -> None:
    """The premise of the cases above."""
    spec = FAMILIES["DeepSeek-V3"].routing
    logits, bias = random_logits(), bias_of(spec)

    _, choice = scores_of(router_logits=logits, spec=spec, correction_bias=bias)
    _, ids = topk_routing(router_logits=logits, spec=spec, correction_bias=bias)
    ungrouped = np.argsort(-choice, axis=1)[:, : spec.top_k]

    assert np.any(np.sort(ids, axis=1) != np.sort(ungrouped, axis=1))
