"""Presets against transformers' configuration classes, wherever they name these as their source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moecheck.model_record import NUMBERS, Model
from moecheck.published_models import MODELS

CLAIMS = [
    pytest.param(name, source.where, letter, id=f"{name}: {NUMBERS[letter]}")
    for name, model in MODELS.items()
    for source in model.sources
    if source.kind == "library"
    for letter in source.numbers
]
# Names under which configurations keep the same number; the first that a class has counts.
KEYS = {
    "E": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
    "k": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"),
    "H": ("hidden_size",),
    "I": ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"),
    "r": ("routed_scaling_factor",),
    "n": ("norm_topk_prob", "moe_renormalize"),
}


def first(config: Any, names: tuple[str, ...]) -> Any:
    """The first of the attributes that the configuration has."""
    return next(value for name in names if (value := getattr(config, name, None)) is not None)


def shared_width(config: Any, inner: int) -> int:
    """Width of all shared experts together: as such, or as a number of experts."""
    for name in ("shared_expert_intermediate_size", "shared_intermediate_size"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    for name in ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name)) * inner
    return inner  # Llama-4: one as wide as a routed one


def seen(model: Model, config: Any, letter: str) -> tuple[object, object]:
    """The preset's number and the configuration's."""
    routing, experts = model.spec.routing, model.spec.experts
    own: dict[str, Callable[[], object]] = {
        "E": lambda: model.num_experts,
        "k": lambda: routing.top_k,
        "H": lambda: model.hidden_size,
        "I": lambda: model.intermediate_size,
        "S": lambda: model.shared_intermediate_size,
        "r": lambda: routing.routed_scaling_factor,
        "n": lambda: routing.renormalize,
        "G": lambda: (routing.num_expert_groups, routing.topk_groups),
        "L": lambda: (experts.swiglu_limit, experts.swiglu_alpha),
    }
    if letter == "E":
        return own["E"](), first(config, KEYS["E"]) + getattr(config, "zero_expert_num", 0)
    if letter == "S":
        return own["S"](), shared_width(config, model.intermediate_size)
    if letter == "G":
        return own["G"](), (config.n_group, config.topk_group)
    if letter == "L":
        return own["L"](), (config.swiglu_limit, getattr(config, "swiglu_alpha", 1.0))
    return own[letter](), first(config, KEYS[letter])


@pytest.mark.parametrize(("name", "model_type", "letter"), CLAIMS)
def test_a_number_of_the_library_is_the_library_s(name: str, model_type: str, letter: str) -> None:
    library = pytest.importorskip(
        "transformers.models.auto.configuration_auto", reason="compares with transformers, an optional extra"
    )
    mapping = library.CONFIG_MAPPING

    preset, published = seen(MODELS[name], mapping[model_type](), letter)

    assert preset == published


@pytest.mark.parametrize("name", MODELS)
def test_every_number_has_exactly_one_source(name: str) -> None:
    model, letters = MODELS[name], "".join(source.numbers for source in MODELS[name].sources)
    spec, routing = model.spec, model.spec.routing
    needed = {
        "E": True,
        "k": True,
        "H": True,
        "I": True,
        "S": model.shared_intermediate_size > 0,
        "X": model.latent_size > 0,
        "r": routing.routed_scaling_factor != 1.0,
        "G": routing.num_expert_groups > 1,
        "L": spec.experts.swiglu_limit is not None or routing.softcap is not None or spec.experts.activation == "situ",
    }

    assert sorted(set(letters)) == sorted(letters), "a number has two sources"
    assert set(letters) <= set(NUMBERS)
    assert {letter for letter, wanted in needed.items() if wanted} <= set(letters)


@pytest.mark.parametrize("name", MODELS)
def test_an_address_is_given_where_something_was_read(name: str) -> None:
    for source in MODELS[name].sources:
        assert bool(source.where) == (source.kind in ("library", "read"))


def test_the_presets_are_those_of_the_table() -> None:
    """The families of docs/semantics.md's table of models, each by one of its members."""
    families = (
        "mixtral qwen1.5 qwen2 qwen3 qwen3.5 deepseek llama-4 grok gpt-oss kimi glm ling minimax olmoe phi jamba "
    )
    families += "dbrx granite hunyuan ernie dots longcat step nemotron gemma mimo lfm2 mistral-large"

    missing = [family for family in families.split() if not any(name.startswith(family) for name in MODELS)]

    assert missing == []
    assert len(MODELS) >= 58
