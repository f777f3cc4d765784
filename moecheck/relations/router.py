"""What moves all scores alike moves no weight: a shift of the logits or of the correction bias; two equal formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecheck.cases import Case
from moecheck.formats import to_float64
from moecheck.ops import LAYERS
from moecheck.relations.premises import takes, tokens
from moecheck.relations.relation import Call, Inputs, Subject, Trial, relation
from moecheck.relations.rows import EVERY, same

SHIFT = 8.0  # keeps fp32 logits of up to 8 in size, on a grid of 2^-16, exact
GRID = 2.0**-16
BIAS_SHIFT = 0.5


def softmax_of_plain_logits(subject: Subject) -> str | None:
    """Weights are a softmax of the fp32 logits as given."""
    case, routing = subject.case, subject.case.spec.routing
    if case.op == "topk_routing" and case.dtype != "fp32":
        return f"has {case.dtype} logits, which a shift would round"
    if routing.scoring != "softmax" or routing.softcap is not None or routing.selection == "sparsemixer":
        return "takes no softmax of its logits"
    return "has logits without order or limit" if case.load in ("extreme", "near_ties", "ties") else None


def bias_only_selects(subject: Subject) -> str | None:
    """A correction bias is added for the choice, and compared with nothing but itself."""
    routing = subject.case.spec.routing
    if routing.correction_bias != "select":
        return "has no bias that selects"
    if routing.num_expert_groups > 1 and routing.group_mask == "zero":
        return "compares choice scores with 0"
    return "has scores without order or limit" if subject.case.load in ("extreme", "near_ties", "ties") else None


def renormalised_softmax(subject: Subject) -> str | None:
    """Softmax over all, then over the chosen, may be written as softmax over the chosen."""
    routing = subject.case.spec.routing
    if not routing.renormalize or routing.renorm_eps_rule != "none" or routing.renorm_norm != 1.0:
        return "does not renormalise, or not by the sum"
    if routing.correction_bias != "none" or routing.num_expert_groups > 1 or routing.selection != "topk":
        return "chooses by more than its logits"
    if routing.softmax_over_selected:
        return "is the other formula already"
    return "implements fixed semantics" if subject.declaration.specs else None


@relation(
    "a shift of all logits changes no weight",
    ops=("topk_routing", *LAYERS),
    premises=(tokens(1), softmax_of_plain_logits),
    keeps_shapes=True,
)
def shifted_logits(case: Case, inputs: Inputs) -> Trial:
    """Logits on a grid, and the same logits plus 8: both exact in fp32."""
    plain = np.rint(to_float64(inputs["router_logits"]) / GRID) * GRID
    dtype = inputs["router_logits"].dtype
    calls = tuple(
        Call(case=case, inputs={**inputs, "router_logits": logits.astype(dtype)}) for logits in (plain, plain + SHIFT)
    )
    return Trial(calls=calls, pairs=lambda seen: (same(seen, 1, 2, rows=EVERY, of=EVERY),))


@relation(
    "a shift of the whole correction bias changes no weight",
    ops=("topk_routing", *LAYERS),
    premises=(tokens(1), bias_only_selects),
    keeps_shapes=True,
)
def shifted_bias(case: Case, inputs: Inputs) -> Trial:
    """The bias only chooses; adding 1/2 to all of it changes no choice, so a weight that moves contains the bias."""
    changed = {**inputs, "correction_bias": inputs["correction_bias"] + np.float32(BIAS_SHIFT)}
    return Trial(
        calls=(Call(case=case, inputs=changed),), pairs=lambda calls: (same(calls, 0, 1, rows=EVERY, of=EVERY),)
    )


@relation(
    "softmax, choice and renormalisation give what softmax over the chosen gives",
    ops=("topk_routing",),
    premises=(tokens(1), takes("spec"), softmax_of_plain_logits, renormalised_softmax),
    keeps_shapes=True,
)
def softmax_over_chosen(case: Case, inputs: Inputs) -> Trial:
    """The same inputs under the other of two spellings of one formula."""
    routing = replace(case.spec.routing, renormalize=False, softmax_over_selected=True)
    other = replace(case, spec=replace(case.spec, routing=routing))
    return Trial(
        calls=(Call(case=other, inputs=inputs),), pairs=lambda calls: (same(calls, 0, 1, rows=EVERY, of=EVERY),)
    )
