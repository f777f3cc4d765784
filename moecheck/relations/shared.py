"""A shared expert is a routed one that every token chooses, with weight 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecheck.cases import Case
from moecheck.relations.premises import tokens
from moecheck.relations.relation import Call, Inputs, Subject, Trial, relation
from moecheck.relations.rows import EVERY, same


def has_a_shared_expert(subject: Subject) -> str | None:
    """One ungated shared expert as wide as the routed ones, and a kernel that reads its semantics from `spec`."""
    case = subject.case
    if case.spec.shared_experts != "ungated" or case.shared_intermediate_size != case.intermediate_size:
        return "has no ungated shared expert as wide as the others"
    if case.spec.shared_spec is not None or case.spec.latent_experts:
        return "has shared experts of another kind than the routed ones"
    if case.spec.routing.num_fused_shared_experts or case.spec.routing.num_zero_experts:
        return "has shared or identity experts among the routed ones"
    if {"shared_w13", "shared_w2"} & set(subject.declaration.required):
        return "has no layer without shared experts"
    return "implements fixed semantics" if subject.declaration.specs else None


@relation(
    "a shared expert is one more slot of weight 1",
    ops=("moe_layer",),
    premises=(tokens(1), has_a_shared_expert),
)
def shared_slot(case: Case, inputs: Inputs) -> Trial:
    """The same layer with the shared expert's matrices behind those of the routed ones."""
    routing = replace(case.spec.routing, num_fused_shared_experts=1)
    spec = replace(case.spec, routing=routing, shared_experts="none")
    fused = {name: value for name, value in inputs.items() if not name.startswith("shared_")}
    for name in ("w13", "w2"):
        fused[name] = np.concatenate([inputs[name], inputs[f"shared_{name}"][None]])
    for name in ("w13_bias", "w2_bias"):  # shared experts have none
        if name in inputs:
            fused[name] = np.concatenate([inputs[name], np.zeros_like(inputs[name][:1])])
    call = Call(case=replace(case, spec=spec, shared_intermediate_size=0), inputs=fused)
    return Trial(calls=(call,), pairs=lambda calls: (same(calls, 0, 1, rows=EVERY, of=EVERY),))
