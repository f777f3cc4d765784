"""Right kernels of a call: legal variants that differ in where they round and in how they add up."""

from __future__ import annotations

from dataclasses import replace

from moecheck.formats import AnyArray
from moecheck.numerics import FLOOR, Numerics
from moecheck.scoring.outputs import honest_outputs
from moecheck.scoring.variants import Variant

from .subject import Subject


def contracts_of(subject: Subject) -> tuple[Numerics, ...]:
    """The kernel's own contract, all kept in fp32, and every store in the input's format; each requantised as its own.

    All of them are within the floor: nobody has to declare them but for the quantisers.
    """
    own = subject.contract
    others = (replace(other, a1_quant=own.a1_quant, a2_quant=own.a2_quant) for other in (Numerics(), FLOOR))
    return tuple(dict.fromkeys((own, *others)))


def variants_of(subject: Subject) -> tuple[Variant, ...]:
    """Two kernels of each contract: one adds as the BLAS does, one in shuffled chunks with split-K."""
    return tuple(
        variant
        for contract in contracts_of(subject)
        for variant in (
            Variant(contract=contract),
            Variant(contract=contract, chunk=32, order="shuffled", splits=2, tree=True, reciprocal=True, seed=1),
        )
    )


def right_outputs(subject: Subject, variant: Variant) -> tuple[AnyArray, ...]:
    """What a right kernel returns, in the op's storage dtypes."""
    return honest_outputs(subject.case, subject.oracle, variant)
