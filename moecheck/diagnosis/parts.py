"""The right output taken apart: what each slot of each token adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecheck.formats import Float64
from moecheck.mutants.call import Call, Ids, slots_of, value, with_slots

SLOTTED = ("fused_experts", "moe_layer", "unpermute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A right output as rest + sum of slots.

    experts: [T, k] int, the expert that a part belongs to, -1 for none (in unpermute all). weights: [T, k] float64.
    slots: [k, T, H] float64, weighted. rest: [T, H] float64, the shared experts' share.
    """

    experts: Ids
    weights: Float64
    slots: Float64
    rest: Float64

    def of_expert(self, expert: int) -> Float64:
        """[T, H]: what an expert adds to each token."""
        held = np.equal(self.experts.T, expert)
        part: Float64 = np.where(held[:, :, None], self.slots, 0.0).sum(axis=0)
        return part

    @property
    def routed(self) -> Float64:
        part: Float64 = self.slots.sum(axis=0)
        return part


def parts_of(call: Call) -> Parts | None:
    """The parts of a right call, one reference call for each slot; None for ops without slots."""
    if call.case.op not in SLOTTED:
        return None
    slots = slots_of(call)
    rest = value(with_slots(call, weights=slots.weights[:, :1], ids=np.full_like(slots.ids[:, :1], -1)))
    single = [
        value(with_slots(call, weights=slots.weights[:, s : s + 1], ids=slots.ids[:, s : s + 1])) - rest
        for s in range(slots.ids.shape[1])
    ]
    return Parts(experts=_experts(call, slots.ids), weights=slots.weights, slots=np.stack(single), rest=rest)


def experts_of(call: Call) -> Ids | None:
    """[rows, k] int: the experts that each row of the output has to do with; None for ops without experts."""
    if call.case.op == "grouped_gemm":
        ends = call.inputs["expert_ends"]
        group = np.searchsorted(ends, np.arange(len(call.inputs["x"])), side="right")
        return np.where(group < len(ends), group, -1)[:, None]
    if call.case.op in ("fused_experts", "moe_layer"):
        return _experts(call, slots_of(call).ids)
    return None


def _experts(call: Call, ids: npt.NDArray[np.integer]) -> Ids:
    if call.case.op == "unpermute":
        return np.full(ids.shape, -1)
    if "expert_map" in call.inputs:
        here = call.inputs["expert_map"][np.maximum(ids, 0)] >= 0
        return np.where(here & (ids >= 0), ids, -1)
    return ids.astype(np.int64)
