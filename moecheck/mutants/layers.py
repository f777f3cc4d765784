"""Mutants of what stands around the experts of a layer: latents, other shared experts, a factor on the whole sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecheck.cases import Case
from moecheck.formats import to_float64
from moecheck.spec import MoESpec

from .call import Call, Mutation, Term, slots_of, with_inputs
from .registry import mutant
from .shared import routed_only, shared_only, unfused

TILE = 32  # terms of a GEMM that are added up at a time


def has_factor(case: Case) -> bool:
    return case.spec.sum_factor != 1.0


def latent(case: Case) -> bool:
    return case.spec.latent_experts


def other_shared(case: Case) -> bool:
    """Shared experts that compute something else than the routed ones, from matrices of the same shape."""
    spec = case.spec
    return spec.shared_spec is not None and spec.shared.gated == spec.experts.gated and _shared_as_routed(case) != spec


def with_sum_factor(call: Call, factor: float) -> Call:
    """The call with another factor on the layer's sum."""
    return replace(call, case=replace(call.case, spec=replace(call.case.spec, sum_factor=factor)))


@mutant("sum_factor_missing", "the factor on the sum of the experts and the dense part is missing", "moe_layer",
        when=has_factor)  # fmt: skip
def sum_factor_missing(call: Call) -> Call:
    return with_sum_factor(call, 1.0)


@mutant("sum_factor_twice", "the factor on the sum is multiplied twice", "moe_layer", when=has_factor)
def sum_factor_twice(call: Call) -> Call:
    return with_sum_factor(call, call.case.spec.sum_factor**2)


@mutant(
    "sum_factor_on_routed",
    "the factor on the sum multiplies the routed experts only",
    "moe_layer",
    when=lambda case: has_factor(case) and unfused(case),
)
def sum_factor_on_routed(call: Call) -> Mutation:
    return Term(call=routed_only(call)), Term(call=shared_only(with_sum_factor(call, 1.0)))


@mutant(
    "shared_as_routed",
    "the shared experts compute what the routed ones do, with their activation and limit instead of its own",
    "moe_layer",
    when=other_shared,
    sources=("sgl-project/sglang#27328",),
)
def shared_as_routed(call: Call) -> Call:
    return replace(call, case=replace(call.case, spec=_shared_as_routed(call.case)))


@mutant(
    "routed_as_shared",
    "the routed experts compute what the shared ones do, with their activation and limit instead of its own",
    "moe_layer",
    when=other_shared,
)
def routed_as_shared(call: Call) -> Call:
    """What is said of arrays beside the spec stays: layout and biases."""
    spec, kept = call.case.spec, ("gate_up_layout", "weight_on_input", "w13_bias", "w2_bias", "quantization")
    experts = replace(spec.shared, **{name: getattr(spec.experts, name) for name in kept})
    return replace(call, case=replace(call.case, spec=replace(spec, experts=experts)))


@mutant(
    "latent_down_skipped",
    "the experts read the first columns of the hidden states: the projection to the latent is skipped",
    "moe_layer",
    when=latent,
)
def latent_down_skipped(call: Call) -> Call:
    return with_inputs(call, latent_down=np.eye(*call.inputs["latent_down"].shape))


@mutant(
    "latent_up_skipped",
    "the experts' sum stands in the first columns of the output: the projection back is skipped",
    "moe_layer",
    when=latent,
)
def latent_up_skipped(call: Call) -> Call:
    return with_inputs(call, latent_up=np.eye(*call.inputs["latent_up"].shape))


@mutant(
    "no_reduce",
    "the projection back from the latent runs before the ranks are added up, and on one of them: half of its terms",
    "moe_layer",
    variant="latent",
    when=lambda case: latent(case) and case.latent_size > 1,
    sources=("vllm-project/tpu-inference#3147",),
)
def latent_not_reduced(call: Call) -> Call:
    up = call.inputs["latent_up"].copy()
    up[:, up.shape[1] // 2 :] = 0
    return with_inputs(call, latent_up=up)


@mutant(
    "drop_last_k_tile",
    f"the latent size's remainder beyond a multiple of {TILE} is missing from the projection back",
    "moe_layer",
    variant=f"latent beyond a multiple of {TILE}",
    when=lambda case: latent(case) and case.latent_size > TILE and case.latent_size % TILE != 0,
    sources=("sgl-project/sglang#2111",),
)
def latent_tail_dropped(call: Call) -> Call:
    up = call.inputs["latent_up"].copy()
    up[:, up.shape[1] // TILE * TILE :] = 0
    return with_inputs(call, latent_up=up)


@mutant(
    "shared_after_inplace",
    "the shared expert reads the hidden states after the latent has been written over their front",
    "moe_layer",
    variant="latent",
    when=lambda case: latent(case) and unfused(case),
    sources=("vllm-project/vllm#28942",),
)
def shared_reads_latent(call: Call) -> Mutation:
    x = to_float64(call.inputs["hidden_states"]).copy()
    written = x @ to_float64(call.inputs["latent_down"]).T
    x[:, : written.shape[1]] = written[:, : x.shape[1]]
    overwritten = replace(with_inputs(call, hidden_states=x), slots=slots_of(call))
    return Term(call=routed_only(call)), Term(call=shared_only(overwritten))


def _shared_as_routed(case: Case) -> MoESpec:
    return replace(case.spec, shared_spec=None)
