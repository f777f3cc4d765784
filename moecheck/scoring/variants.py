"""Legal variants: correct kernels that round at declared places and add up in an order of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moecheck import draw
from moecheck.numerics import INPUT, Numerics
from moecheck.quantizer import Quantizer

Known = Literal["declared", "found", "unknown"]
Order = Literal["forward", "backward", "shuffled"]
# Numerics class -> the dtype of its cases.
CLASSES = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "fp8": "bf16"}
# Where kernels store in the input's dtype, none of it lower than a kernel may without saying so.
STORES = (
    Numerics(),
    Numerics(act_times_up=INPUT),
    Numerics(gate_up=INPUT, act_times_up=INPUT),
    Numerics(gate_up=INPUT, act_times_up=INPUT, weighted=INPUT),
    Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    Numerics(gate_up=INPUT, act=INPUT, act_times_up=INPUT, per_expert=INPUT),
    Numerics(gate_up=INPUT, act=INPUT, act_times_up=INPUT, per_expert=INPUT, weighted=INPUT),
)
# Lower than that: only right where it is declared.
LOW_COMBINE = (
    Numerics(gate_up=INPUT, act_times_up=INPUT, weighted=INPUT, combine=INPUT, combine_order="slot"),
    Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT, combine=INPUT, combine_order="expert"),
    Numerics(topk_weights=INPUT, act_times_up=INPUT, per_expert=INPUT),
)
REQUANTISED = (
    Numerics(a2_quant=Quantizer(group=128)),
    Numerics(gate_up=INPUT, act_times_up=INPUT, a2_quant=Quantizer(group=128, scale="power_of_two")),
    Numerics(a1_quant=Quantizer(), a2_quant=Quantizer()),
    Numerics(a1_quant=Quantizer(group=128), a2_quant=Quantizer(group=128), per_expert=INPUT),
    Numerics(act_times_up=INPUT, a2_quant=Quantizer(format="int8")),
    Numerics(a2_quant=Quantizer(group=32, scale="power_of_two", division="multiply")),
)
# Of layers that are given the scales.
STATIC = (
    Numerics(a1_quant=Quantizer(static=True), a2_quant=Quantizer(static=True)),
    Numerics(
        gate_up=INPUT,
        act_times_up=INPUT,
        a1_quant=Quantizer(static=True, division="multiply"),
        a2_quant=Quantizer(static=True, division="multiply"),
    ),
)
CHUNKS = (0, 16, 32, 64, 128)
SPLITS = (1, 2, 3, 4)
ORDERS: tuple[Order, ...] = ("forward", "backward", "shuffled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A correct kernel. contract: where it rounds. known: whether it declares that, is found out, or neither.

    chunk: terms of a GEMM's sums that are added up at a time (0: as the BLAS likes). order: of the chunks. splits:
    partial sums that are added at the end (split-K). tree: whether a token's slots are added pairwise. reciprocal:
    whether silu is g * (1 / (1 + e)) instead of g / (1 + e). seed: of shuffles and of roundings that are free.
    """

    contract: Numerics
    known: Known = "declared"
    chunk: int = 0
    order: Order = "forward"
    splits: int = 1
    tree: bool = False
    reciprocal: bool = False
    seed: int = 0

    @property
    def judged_under(self) -> Numerics | None:
        """The contract that the harness is told."""
        return None if self.known == "unknown" else self.contract

    @property
    def declared(self) -> bool:
        return self.known == "declared"

    def words(self) -> str:
        """`gate_up, act_times_up stored; declared; chunks of 64 backward, split-K 2`."""
        low = ("topk_weights", "gate_up", "act", "act_times_up", "per_expert", "weighted", "combine")
        stored = ", ".join(name for name in low if getattr(self.contract, name) != "fp32") or "nothing"
        quantised = [q.words() for q in (self.contract.a1_quant, self.contract.a2_quant) if q is not None]
        sums = f"chunks of {self.chunk} {self.order}" if self.chunk else "BLAS sums"
        return "; ".join([f"{stored} stored", *quantised, self.known, f"{sums}, split-K {self.splits}"])


def variant_of(
    number: int, *, requantised: bool = False, static: bool = False, known: tuple[Known, ...] = ("declared",)
) -> Variant:
    """The legal variant of a number: every number draws its contract, order of sums and the rest anew.

    requantised: whether it requantises activations. static: whether by scales that it is given. known: what the harness
    may be told of it.
    """
    requantised = requantised or static
    bits = draw.integers(("variant", number, requantised), (8,), below=1 << 30)
    said = known[int(bits[0]) % len(known)]
    quantised = STATIC if static else REQUANTISED
    contracts = quantised if requantised else STORES if said == "unknown" else (*STORES, *LOW_COMBINE)
    if requantised and said == "unknown":
        said = "found"  # nothing can be said of requantisation whose rounding points nobody knows
    return Variant(
        contract=contracts[int(bits[1]) % len(contracts)],
        known=said,
        chunk=CHUNKS[int(bits[2]) % len(CHUNKS)],
        order=ORDERS[int(bits[3]) % len(ORDERS)],
        splits=SPLITS[int(bits[4]) % len(SPLITS)],
        tree=bool(bits[5] % 2),
        reciprocal=bool(bits[6] % 2),
        seed=number,
    )


def chunks_of(variant: Variant, terms: int) -> list[slice]:
    """The parts of a sum over `terms` products, in the order in which they are added."""
    size = variant.chunk or max(terms, 1)
    parts = [slice(start, min(start + size, terms)) for start in range(0, terms, size)]
    if variant.order == "backward":
        return parts[::-1]
    if variant.order == "shuffled":
        order = np.argsort(draw.integers(("chunks", variant.seed, terms), (len(parts),), below=1 << 32))
        return [parts[i] for i in order]
    return parts
