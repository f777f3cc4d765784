"""The numbers of experts and slots are names only: exchanging them changes nothing but the order of sums."""

from __future__ import annotations

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.ops import LAYERS
from moecheck.quantization import OF_WEIGHTS
from moecheck.relations.premises import (
    declares_determinism,
    every_slot_has_an_expert,
    has_spare_expert,
    plain_experts,
    slots,
    tokens,
    weights_multiply_outputs,
    weights_of_a_set,
)
from moecheck.relations.relation import Call, Calls, Inputs, Pair, Trial, relation
from moecheck.relations.rows import EVERY, like_the_case, same

ID_OPS = ("fused_experts", "permute", "align_block_size", "problem_sizes", "expert_counts")
PER_EXPERT = ("w13", "w2", "w13_bias", "w2_bias", "correction_bias", "per_expert_scale", *OF_WEIGHTS)


@relation(
    "the experts' numbers do not count",
    ops=("fused_experts", *LAYERS, "topk_routing"),
    premises=(plain_experts, tokens(1), weights_of_a_set),
    keeps_shapes=True,
)
def expert_relabelling(case: Case, inputs: Inputs) -> Trial:
    """Expert e is called E - 1 - e everywhere: in the weights, the ids, the logits and the biases."""
    changed = {**inputs, **{name: inputs[name][::-1].copy() for name in PER_EXPERT if name in inputs}}
    if "topk_ids" in inputs:
        ids = inputs["topk_ids"]
        changed["topk_ids"] = np.where(ids < 0, ids, case.num_experts - 1 - ids).astype(ids.dtype)
    if "tid2eid" in inputs:
        changed["tid2eid"] = case.num_experts - 1 - inputs["tid2eid"]
    if "router_logits" in inputs:
        changed["router_logits"] = inputs["router_logits"][:, ::-1].copy()

    def pairs(calls: Calls) -> tuple[Pair, ...]:
        pair = like_the_case(calls, 1, rows=EVERY)
        if case.op != "topk_routing":
            return (pair,)
        return (Pair(wanted=pair.wanted, got=pair.got[:, ::-1], allowed=pair.allowed),)

    return Trial(calls=(Call(case=case, inputs=changed),), pairs=pairs)


@relation(
    "the order of a token's slots does not count",
    ops=("fused_experts", "unpermute"),
    premises=(slots(2), tokens(1)),
    keeps_shapes=True,
)
def slot_permutation(case: Case, inputs: Inputs) -> Trial:
    """Ids and weights of each token in reverse."""
    names = [name for name in ("topk_ids", "topk_weights", "inv_permuted_idx") if name in inputs]
    reverse: dict[str, AnyArray] = {name: inputs[name][:, ::-1].copy() for name in names}
    return Trial(
        calls=(Call(case=case, inputs={**inputs, **reverse}),),
        pairs=lambda calls: (like_the_case(calls, 1, rows=EVERY),),
    )


@relation(
    "a slot of weight 0 may have any expert",
    ops=("fused_experts",),
    premises=(slots(2), tokens(1), has_spare_expert, weights_multiply_outputs),
    keeps_shapes=True,
)
def zero_weight_slot(case: Case, inputs: Inputs) -> Trial:
    """The last slot weighs 0, and has its own expert in one call, the next free one in the other."""
    weights, ids = inputs["topk_weights"].copy(), inputs["topk_ids"].copy()
    weights[:, -1] = 0.0
    plain = {**inputs, "topk_weights": weights}
    for row in ids:
        if row[-1] >= 0:
            taken = set(row.tolist())
            row[-1] = next(e for e in np.roll(np.arange(case.num_experts), -row[-1] - 1) if e not in taken)
    return Trial(
        calls=(Call(case=case, inputs=plain), Call(case=case, inputs={**plain, "topk_ids": ids})),
        pairs=lambda calls: (same(calls, 1, 2, rows=EVERY, of=EVERY),),
    )


@relation(
    "ids of 64 bits mean what those of 32 do",
    ops=ID_OPS,
    exact=declares_determinism,
    keeps_shapes=True,
    optional=True,
)
def wide_ids(case: Case, inputs: Inputs) -> Trial:
    """`topk_ids` as int64, which PyTorch's own topk returns. A kernel may refuse them."""
    wide = {**inputs, "topk_ids": inputs["topk_ids"].astype(np.int64)}
    return Trial(calls=(Call(case=case, inputs=wide),), pairs=lambda calls: (like_the_case(calls, 1, rows=EVERY),))


@relation(
    "unsigned ids mean what signed ones do",
    ops=ID_OPS,
    premises=(every_slot_has_an_expert,),
    exact=declares_determinism,
    keeps_shapes=True,
    optional=True,
)
def unsigned_ids(case: Case, inputs: Inputs) -> Trial:
    """`topk_ids` as uint32, which some all-to-all libraries hand on. A kernel may refuse them."""
    unsigned = {**inputs, "topk_ids": inputs["topk_ids"].astype(np.uint32)}
    return Trial(calls=(Call(case=case, inputs=unsigned),), pairs=lambda calls: (like_the_case(calls, 1, rows=EVERY),))
