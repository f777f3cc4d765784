"""A layer that is divided among ranks sums to the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from moecheck.cases import Case
from moecheck.gate_up import rows_of_units
from moecheck.ops import LAYERS
from moecheck.placement import expert_map, experts_of_rank, physical_ids, replicas_of
from moecheck.relations.experts import PER_EXPERT
from moecheck.relations.premises import output_is_linear_in_experts, plain_experts, plain_weights, takes, tokens
from moecheck.relations.relation import Call, Calls, Inputs, Pair, Premise, Subject, Trial, relation
from moecheck.relations.rows import EVERY, like_the_case
from moecheck.spec import ExpertSpec

RANKS = 2
TILE = 16  # shards of a width that kernels with 16-byte rows take too
UNEVEN_RANKS = 3  # of most numbers of experts, some get one more than others


def divisible(subject: Subject) -> str | None:
    """The intermediate widths can be shared evenly."""
    case = subject.case
    if case.intermediate_size % (RANKS * TILE) or case.shared_intermediate_size % (RANKS * TILE):
        return f"has an intermediate size that {RANKS} ranks cannot share"
    return None


def _several_experts(subject: Subject) -> str | None:
    return None if subject.case.num_experts >= UNEVEN_RANKS else f"has fewer than {UNEVEN_RANKS} experts"


EXPERTS_TO_SHARE: tuple[Premise, ...] = (plain_experts, tokens(1), takes("expert_map"), _several_experts)


@relation("experts shared among ranks sum to the whole", ops=("fused_experts",), premises=EXPERTS_TO_SHARE)
def expert_shards(case: Case, inputs: Inputs) -> Trial:
    """Each of three ranks owns a run of experts, told by `expert_map`; the first ranks may have one more."""
    calls = []
    for rank in range(UNEVEN_RANKS):
        owned = experts_of_rank(rank, num_experts=case.num_experts, num_ranks=UNEVEN_RANKS)
        local: Inputs = {n: inputs[n][owned] for n in PER_EXPERT if n in inputs}
        mapped = expert_map(owned, case.num_experts)
        changed = replace(case, num_local_experts=len(owned))
        calls.append(Call(case=changed, inputs={**inputs, **local, "expert_map": mapped}))
    return Trial(calls=tuple(calls), pairs=_sum_of_ranks)


@relation(
    "experts' columns shared among ranks sum to the whole",
    ops=("fused_experts", *LAYERS),
    premises=(divisible, plain_weights, output_is_linear_in_experts, tokens(1)),
)
def tensor_shards(case: Case, inputs: Inputs) -> Trial:
    """Each of two ranks has half of the units of every expert, shared ones too; only the first adds the second bias."""
    calls = []
    for rank in range(RANKS):
        local = _shard(inputs, rank, case.intermediate_size, case.spec.experts, "")
        local |= _shard(inputs, rank, case.shared_intermediate_size, case.spec.shared, "shared_")
        if rank > 0 and "w2_bias" in inputs:
            local["w2_bias"] = np.zeros_like(inputs["w2_bias"])
        changed = replace(
            case,
            intermediate_size=case.intermediate_size // RANKS,
            shared_intermediate_size=case.shared_intermediate_size // RANKS,
        )
        calls.append(Call(case=changed, inputs={**inputs, **local}))
    return Trial(calls=tuple(calls), pairs=_sum_of_ranks)


def _shard(inputs: Inputs, rank: int, width: int, spec: ExpertSpec, kind: str) -> Inputs:
    """A rank's units of the routed (kind "") or shared ("shared_") experts; nothing where there are none."""
    if f"{kind}w13" not in inputs:
        return {}
    units = np.arange(rank * (width // RANKS), (rank + 1) * (width // RANKS))
    rows = rows_of_units(units, width, spec)
    local: Inputs = {
        f"{kind}w13": inputs[f"{kind}w13"][..., rows, :].copy(),
        f"{kind}w2": np.ascontiguousarray(inputs[f"{kind}w2"][..., units]),
    }
    if f"{kind}w13_bias" in inputs:
        local[f"{kind}w13_bias"] = inputs[f"{kind}w13_bias"][..., rows].copy()
    return local


@relation(
    "which copy of an expert a token goes to changes nothing",
    ops=("fused_experts",),
    premises=(plain_experts, tokens(1)),
)
def expert_replicas(case: Case, inputs: Inputs) -> Trial:
    """Every third expert exists three times, every other one once; tokens choose copies by a hash, or slot by slot."""
    experts = np.arange(case.num_experts)
    replicas = replicas_of(np.repeat(experts, np.where(experts % 3 == 0, 3, 1)), case.num_experts)
    copies: Inputs = {n: inputs[n][replicas.logical] for n in PER_EXPERT if n in inputs}
    changed = replace(case, num_experts=len(replicas.logical))
    rules: tuple[Literal["hash", "slot"], ...] = ("hash", "slot")
    return Trial(
        calls=tuple(
            Call(
                case=changed,
                inputs={**inputs, **copies, "topk_ids": physical_ids(inputs["topk_ids"], replicas, rule=rule)},
            )
            for rule in rules
        ),
        pairs=lambda calls: tuple(like_the_case(calls, i + 1, rows=EVERY) for i in range(len(rules))),
    )


def _sum_of_ranks(calls: Calls) -> tuple[Pair, ...]:
    ranks = range(1, len(calls.outputs))
    return (
        Pair(
            wanted=calls.outputs[0],
            got=np.sum([calls.outputs[rank] for rank in ranks], axis=0),
            allowed=lambda: np.sqrt(np.sum([np.square(calls.allowed(i)) for i in (0, *ranks)], axis=0)),
        ),
    )
