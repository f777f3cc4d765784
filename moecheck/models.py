"""The layers of published models as cases, in full size or scaled down."""

from __future__ import annotations

from .cases import Case
from .errors import check_known
from .model_record import Model
from .published_models import MODELS
from .spec import MoESpec

__all__ = ["MODELS", "Model", "model_case", "scaled"]

MANY_EXPERTS = 64  # above, a scaled layer is narrower: its weights are what a check spends its time on


def model_case(name: str, op: str, *, num_tokens: int, dtype: str, full_size: bool = False, seed: int = 0) -> Case:
    """A model's layer as a case; scaled down it keeps E, top_k, groups, shared experts, factors and ragged tails.

    Raises UsageError for an unknown model, offering the near name.
    """
    check_known("model", name, MODELS)
    model = MODELS[name]
    hidden, intermediate, shared = model.hidden_size, model.intermediate_size, model.shared_intermediate_size
    latent = model.latent_size
    if not full_size:
        hidden = scaled(hidden, 256 if model.num_experts <= MANY_EXPERTS else 128)
        intermediate, shared = scaled(intermediate, 128), scaled(shared, 128) if shared else 0
        latent = 64 + latent % 64 if latent else 0
    reads_layer = op == "moe_layer"
    spec = model.spec if reads_layer else MoESpec(routing=model.spec.routing, experts=model.spec.experts)
    return Case(
        op=op,
        spec=spec,
        num_tokens=num_tokens,
        num_experts=model.num_experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        shared_intermediate_size=shared if reads_layer else 0,
        latent_size=latent if reads_layer else 0,
        dtype=dtype,
        seed=seed,
        name=name if full_size else f"{name}-scaled",
        reason=f"the layer of {name}" + ("" if full_size else ", hidden and intermediate size scaled down"),
    )


def scaled(size: int, least: int) -> int:
    """A small size with the same remainder modulo 128: 2880 -> 320, 704 -> 192, 4096 -> 256."""
    return least + size % 128
