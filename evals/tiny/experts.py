"""The reference path's experts: rows sorted by expert, GEMMs in fp32 on values rounded to the arm's precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from .rounding import operand_of, store_of
from .weights import DenseWeights

Activation = Callable[[torch.Tensor], torch.Tensor]


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up: [rows, 2I] with gates first to [rows, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


@dataclass(frozen=True, slots=True)
class Experts:
    """Experts in a precision: what they get is rounded to it, and so is what each GEMM and the activation store.

    w13: [E, 2I, H], w2: [E, H, I], rounded to the precision.
    """

    w13: torch.Tensor
    w2: torch.Tensor
    precision: str
    activation: Activation = silu_and_mul

    @classmethod
    def prepared(cls, w13: torch.Tensor, w2: torch.Tensor, precision: str) -> Experts:
        """With weights rounded to the precision."""
        operand = operand_of(precision)
        return cls(operand(w13), operand(w2), precision)

    def slots(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Each slot's expert on its token: hidden [T, H], ids [T, k] (-1: zeros) to [T, k, H]."""
        num_experts = len(self.w13)
        flat = torch.where(ids < 0, num_experts, ids).flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=num_experts + 1).tolist()
        store, operand = store_of(self.precision), operand_of(self.precision)
        rows = operand(store(hidden))[order // ids.shape[1]]
        gate_up = store(self._gemms(rows, self.w13, counts))
        inner = operand(store(self.activation(gate_up)))
        out = store(self._gemms(inner, self.w2, counts))
        slots = torch.empty_like(out)
        slots[order] = out
        return slots.view(*ids.shape, -1)

    @staticmethod
    def _gemms(rows: torch.Tensor, matrices: torch.Tensor, counts: list[int]) -> torch.Tensor:
        out = rows.new_empty(len(rows), matrices.shape[1])
        start = 0
        for matrix, count in zip(matrices, counts, strict=False):
            if count:
                torch.mm(rows[start : start + count], matrix.T, out=out[start : start + count])
                start += count
        out[start:] = 0.0  # rows without an expert come last
        return out


def weighted_sum(slots: torch.Tensor, weights: torch.Tensor, *, backwards: bool = False) -> torch.Tensor:
    """Sum over the slots of weight * output, one after the other in fp32: [T, k, H], [T, k] to [T, H]."""
    order = range(slots.shape[1])[::-1] if backwards else range(slots.shape[1])
    out = torch.zeros_like(slots[:, 0])
    for slot in order:
        out = torch.addcmul(out, slots[:, slot], weights[:, slot, None])
    return out


def feed_forward(
    hidden: torch.Tensor, weights: DenseWeights, precision: str, activation: Activation = silu_and_mul
) -> torch.Tensor:
    """One expert on all tokens, its weights rounded already: [T, H] to [T, H]."""
    store, operand = store_of(precision), operand_of(precision)
    gate_up = store(functional.linear(operand(store(hidden)), weights.w13))
    return store(functional.linear(operand(store(activation(gate_up))), weights.w2))
