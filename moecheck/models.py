"""The layers of published models as cases, in full size or scaled down."""

from __future__ import annotations

from dataclasses import replace

from .cases import SAMPLED_OPS, Case
from .errors import UsageError, check_known
from .model_record import Model
from .published_models import MODELS
from .quantization import Quantization
from .spec import MoESpec

__all__ = ["MODELS", "Model", "full_size_cases", "model_case", "scaled", "shard_of"]

SAMPLE = 64  # tokens of a full-size layer that the reference computes
# Ops whose reference computes every row of a full-size layer in reasonable time, beside those of which it may sample.
WHOLE_OPS = (
    "topk_routing", "act_and_mul", "permute", "align_block_size", "problem_sizes", "expert_counts", "shuffle_rows",
)  # fmt: skip
DTYPES = ("bf16", "fp16", "fp32")
RANKS = 2  # of a layer that is spread over ranks, where they can share its experts evenly
MANY_EXPERTS = 64  # above, a scaled layer is narrower: its weights are what a check spends its time on


def model_case(name: str, op: str, *, num_tokens: int, dtype: str, full_size: bool = False, seed: int = 0) -> Case:
    """A model's layer as a case; scaled down it keeps E, top_k, groups, shared experts, factors and ragged tails.

    Raises UsageError for an unknown model, offering the near name.
    """
    model, ranks = shard_of(name)
    hidden, intermediate = model.hidden_size, model.intermediate_size // ranks
    shared = model.shared_intermediate_size // ranks
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
        num_ranks=RANKS if op == "expert_parallel_moe" and model.num_experts % RANKS == 0 else 1,
        dtype=dtype,
        seed=seed,
        name=name if full_size else f"{name}-scaled",
        reason=f"the layer of {name}" + ("" if full_size else ", hidden and intermediate size scaled down"),
    )


def shard_of(name: str) -> tuple[Model, int]:
    """The model of a name such as `deepseek-v3-tp8`, and over how many ranks each expert's width is split (8).

    Raises UsageError for an unknown model, offering the near name, and for a width that cannot be split so.
    """
    base, dash, count = name.rpartition("-tp")
    if not (dash and count.isdigit()) or name in MODELS:
        check_known("model", name, MODELS)
        return MODELS[name], 1
    check_known("model", base, MODELS)
    ranks, model = int(count), MODELS[base]
    if ranks < 1 or model.intermediate_size % ranks or model.shared_intermediate_size % ranks:
        raise UsageError(f"--model {name}: the widths of {base} cannot be split over {count} ranks.")
    return model, ranks


def full_size_cases(
    name: str,
    op: str,
    *,
    tokens: tuple[int, ...],
    dtypes: tuple[str, ...],
    quantizations: tuple[Quantization, ...],
    plain_weights: bool,
    seed: int,
) -> list[Case]:
    """The layer of a model in full size with so many tokens, in the first of `dtypes` that the usual order has.

    Empty for an op whose reference would take too long. Of fused_experts there is a case for each quantization, and one
    with plain weights where plain_weights is true.
    """
    if op not in (*SAMPLED_OPS, *WHOLE_OPS):
        return []
    dtype = next(dtype for dtype in DTYPES if dtype in dtypes)
    cases = []
    for count in tokens:
        case = model_case(name, op, num_tokens=count, dtype=dtype, full_size=True, seed=seed)
        case = replace(case, sampled=SAMPLE) if op in SAMPLED_OPS else case
        cases += [case] if plain_weights else []
        for quantization in quantizations if op == "fused_experts" else ():
            experts = replace(case.spec.experts, quantization=quantization)
            cases.append(replace(case, spec=replace(case.spec, experts=experts)))
    return cases


def scaled(size: int, least: int) -> int:
    """A small size with the same remainder modulo 128: 2880 -> 320, 704 -> 192, 4096 -> 256."""
    return least + size % 128
