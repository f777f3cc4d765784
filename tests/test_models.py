"""Models as cases: every layer builds, scaled layers keep what matters."""

from __future__ import annotations

import pytest

from moecheck.errors import UsageError
from moecheck.models import MODELS, model_case, scaled
from moecheck.spec import MoESpec


@pytest.mark.parametrize("op", ["topk_routing", "fused_experts", "moe_layer", "act_and_mul"])
@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_is_a_case_of_the_layer_ops(name: str, op: str) -> None:
    model, case = MODELS[name], model_case(name, op, num_tokens=2, dtype="bf16", full_size=True)

    assert (case.num_experts, case.hidden_size, case.intermediate_size) == (
        model.num_experts,
        model.hidden_size,
        model.intermediate_size,
    )
    assert case.spec.routing == model.spec.routing
    assert case.spec.experts == model.spec.experts
    assert (case.spec.shared_experts, case.shared_intermediate_size) == (
        (model.spec.shared_experts, model.shared_intermediate_size) if op == "moe_layer" else ("none", 0)
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_a_scaled_layer_keeps_semantics_and_ragged_tails(name: str) -> None:
    model, case = MODELS[name], model_case(name, "moe_layer", num_tokens=4, dtype="bf16")

    assert case.spec == model.spec
    assert case.num_experts == model.num_experts
    assert case.hidden_size % 128 == model.hidden_size % 128
    assert case.intermediate_size % 128 == model.intermediate_size % 128
    assert case.hidden_size < 256 + 128
    assert case.intermediate_size < 128 + 128
    assert (case.shared_intermediate_size > 0) == (model.shared_intermediate_size > 0)


@pytest.mark.parametrize(("size", "least", "wanted"), [(2880, 256, 320), (704, 128, 192), (4096, 256, 256)])
def test_scaled(size: int, least: int, wanted: int) -> None:
    assert scaled(size, least) == wanted


@pytest.mark.parametrize(
    ("name", "experts", "top_k"),
    [("deepseek-v3", 256, 8), ("mixtral-8x7b", 8, 2), ("gpt-oss-120b", 128, 4), ("qwen3-30b-a3b", 128, 8)],
)
def test_well_known_sizes(name: str, experts: int, top_k: int) -> None:
    assert (MODELS[name].num_experts, MODELS[name].spec.routing.top_k) == (experts, top_k)


def test_an_unknown_model_offers_the_near_name() -> None:
    with pytest.raises(UsageError, match=r"Unknown model 'mixtral-8x7'\. Did you mean 'mixtral-8x7b'\?"):
        model_case("mixtral-8x7", "moe_layer", num_tokens=1, dtype="bf16")


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_survives_json(name: str) -> None:
    assert MoESpec.from_json(MODELS[name].spec.to_json()) == MODELS[name].spec
