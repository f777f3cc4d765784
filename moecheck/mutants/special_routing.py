"""Mutants of rules that few routers have: a table of experts, experts that compute nothing, sparsemixer's rounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case

from .call import Call, Mutation, Slots, Term, slots_of, with_inputs, with_routing, with_slots
from .registry import mutant
from .routing import ROUTED, effective_factor, of_routed, routing
from .shared import routed_only


def hashed(case: Case) -> bool:
    return routing(case).selection == "hash"


def mixed(case: Case) -> bool:
    return routing(case).selection == "sparsemixer"


def has_zero(case: Case) -> bool:
    """Experts that hand the token on."""
    return routing(case).num_zero_experts > 0


def of_zero_experts(call: Call, slots: Slots) -> npt.NDArray[np.bool_]:
    """[T, slots]: which slots hold an expert that hands the token on."""
    count = call.case.num_experts
    return (slots.ids >= count - routing(call.case).num_zero_experts) & (slots.ids < count)


@mutant("hash_ignored", "the best experts are chosen where a table of tokens says which", *ROUTED, when=hashed)
def hash_ignored(call: Call) -> Call:
    return with_routing(call, selection="topk")


@mutant(
    "hash_by_position",
    "the table of experts is looked up by a token's place in the batch instead of its id",
    *ROUTED,
    when=lambda case: hashed(case) and case.num_tokens > 1,
)
def hash_by_position(call: Call) -> Call:
    rows = np.arange(call.case.num_tokens) % len(call.inputs["tid2eid"])
    return with_inputs(call, token_ids=rows.astype(np.int32))


@mutant("hash_row_off_by_one", "the table of experts is read one row too far", *ROUTED, when=hashed)
def hash_row_off_by_one(call: Call) -> Call:
    return with_inputs(call, tid2eid=np.roll(call.inputs["tid2eid"], -1, axis=0))


@mutant(
    "zero_expert_unweighted",
    "zero experts add the token itself, not weighted",
    "moe_layer",
    when=has_zero,
    sources=("sgl-project/sglang#30387",),
)
def zero_experts_unweighted(call: Call) -> Call:
    slots = slots_of(call)
    return with_slots(call, weights=np.where(of_zero_experts(call, slots), 1.0, slots.weights))


@mutant(
    "zero_expert_without_factor",
    "the routed scaling factor does not multiply what zero experts add",
    "moe_layer",
    when=lambda case: has_zero(case) and effective_factor(case) != 1.0,
)
def zero_experts_without_factor(call: Call) -> Call:
    slots, factor = slots_of(call), effective_factor(call.case)
    return with_slots(call, weights=slots.weights / np.where(of_zero_experts(call, slots), factor, 1.0))


@mutant(
    "zero_expert_as_real",
    "an id that stands in for a zero expert's keeps its weight: a real expert is added, too",
    "moe_layer",
    when=has_zero,
    sources=("sgl-project/sglang#30387",),
)
def zero_experts_compute(call: Call) -> Mutation:
    slots, real = slots_of(call), call.case.num_experts - routing(call.case).num_zero_experts
    ids = np.where(of_zero_experts(call, slots), slots.ids % real, -1)
    return Term(call=call), Term(call=routed_only(with_slots(call, ids=ids)))


@mutant(
    "sparsemixer_renormalised",
    "the two weights of sparsemixer are divided by their sum",
    *ROUTED,
    when=lambda case: mixed(case) and routing(case).top_k == 2,
)
def sparsemixer_renormalised(call: Call) -> Call:
    weights = slots_of(call).weights
    return of_routed(call, weights / weights.sum(axis=1, keepdims=True))


@mutant(
    "sparsemixer_half_threshold",
    "sparsemixer leaves out experts beyond epsilon instead of twice epsilon",
    *ROUTED,
    when=mixed,
)
def sparsemixer_half_threshold(call: Call) -> Call:
    return with_routing(call, sparsemixer_epsilon=routing(call.case).sparsemixer_epsilon / 2.0)
