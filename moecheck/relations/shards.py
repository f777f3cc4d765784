"""A layer that is divided among ranks sums to the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.relations.premises import plain_experts, takes, tokens
from moecheck.relations.relation import Call, Calls, Inputs, Pair, Premise, Subject, Trial, relation
from moecheck.spec import ExpertSpec

RANKS = 2
TILE = 16  # shards of a width that kernels with 16-byte rows take too


def divisible(subject: Subject) -> str | None:
    """The intermediate width can be shared evenly, and the second bias is not added by each rank again."""
    if subject.case.intermediate_size % (RANKS * TILE):
        return f"has an intermediate size that {RANKS} ranks cannot share"
    if subject.case.spec.shared_experts != "none":
        return "has shared experts"
    return "has a second bias, which only one rank may add" if subject.case.spec.experts.w2_bias else None


def _several_experts(subject: Subject) -> str | None:
    return None if subject.case.num_experts >= RANKS else "has one expert only"


EXPERTS_TO_SHARE: tuple[Premise, ...] = (plain_experts, tokens(1), takes("expert_map"), _several_experts)


@relation("experts shared among ranks sum to the whole", ops=("fused_experts",), premises=EXPERTS_TO_SHARE)
def expert_shards(case: Case, inputs: Inputs) -> Trial:
    """Each of two ranks owns every second expert, told by `expert_map`."""
    calls = []
    for rank in range(RANKS):
        owned = np.arange(rank, case.num_experts, RANKS)
        mapped = np.full(case.num_experts, -1, np.int32)
        mapped[owned] = np.arange(len(owned), dtype=np.int32)
        local: Inputs = {n: inputs[n][owned] for n in ("w13", "w2", "w13_bias", "w2_bias") if n in inputs}
        changed = replace(case, num_local_experts=len(owned), map_style="round_robin")
        calls.append(Call(case=changed, inputs={**inputs, **local, "expert_map": mapped}))
    return Trial(calls=tuple(calls), pairs=_sum_of_ranks)


@relation(
    "experts' columns shared among ranks sum to the whole",
    ops=("fused_experts", "moe_layer"),
    premises=(divisible, tokens(1)),
)
def tensor_shards(case: Case, inputs: Inputs) -> Trial:
    """Each of two ranks has half of the intermediate units of every expert."""
    width = case.intermediate_size // RANKS
    changed = replace(case, intermediate_size=width)
    calls = []
    for rank in range(RANKS):
        units = np.arange(rank * width, (rank + 1) * width)
        rows = _rows_of_units(units, case.intermediate_size, case.spec.experts)
        local: Inputs = {
            "w13": inputs["w13"][:, rows].copy(),
            "w2": np.ascontiguousarray(inputs["w2"][:, :, units]),
        }
        if "w13_bias" in inputs:
            local["w13_bias"] = inputs["w13_bias"][:, rows].copy()
        calls.append(Call(case=changed, inputs={**inputs, **local}))
    return Trial(calls=tuple(calls), pairs=_sum_of_ranks)


def _rows_of_units(units: npt.NDArray[np.intp], width: int, spec: ExpertSpec) -> npt.NDArray[np.intp]:
    """Rows of w13 that compute the given intermediate units, in the spec's layout."""
    if not spec.gated:
        return units
    if spec.gate_up_layout == "interleaved":
        return np.stack([2 * units, 2 * units + 1], axis=1).reshape(-1)
    return np.concatenate([units, width + units])


def _sum_of_ranks(calls: Calls) -> tuple[Pair, ...]:
    ranks = range(1, RANKS + 1)
    return (
        Pair(
            wanted=calls.outputs[0],
            got=np.sum([calls.outputs[rank] for rank in ranks], axis=0),
            allowed=lambda: np.sqrt(np.sum([np.square(calls.allowed(i)) for i in (0, *ranks)], axis=0)),
        ),
    )
