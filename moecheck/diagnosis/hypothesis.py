"""One explanation of a wrong output, and what it must pay for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecheck.formats import FORMATS
from moecheck.mutants.call import Prediction
from moecheck.numerics import FLOOR, STORES, Numerics

from .evidence import LEAST_GAIN, SHARED, Score

CERTAIN = 8.0  # standard errors by which a fitted factor must differ from 1
# Slope that an honest kernel's stores explain, undeclared; a tenth of it about the reference that rounds as it does.
BIAS = {"bf16": 5e-4, "fp16": 6e-5, "fp32": 2e-7}
ANYTHING = 9  # complexity of a hypothesis with so many numbers that it is only asked where no other explains
PRICE = SHARED**2  # what one fitted number takes away from the sum of z^2 by chance
LEAST_SHARE = 0.5  # of the error beyond rounding that whatever is named must take away
ROUGH_SHARE = 0.75  # the same of a hypothesis whose bits cannot be foreseen
HONEST = 1.25  # rms z of a right kernel, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One explanation. complexity: 0 for a bug without free numbers; a simpler one is preferred where both explain.

    parameters: how many numbers were fitted, where they are many. slight: its difference from the reference may be too
    small for the sum of z^2, and was judged by its own error. rough: it foretells where a kernel rounds, and not every
    bit. everywhere: it is wrong in the same way in every element.
    """

    name: str
    words: str
    prediction: Prediction
    complexity: int
    sources: tuple[str, ...] = ()
    parameters: int = 0
    slight: bool = False
    rough: bool = False
    everywhere: bool = False

    def accepted(self, s: Score, reference: Score) -> bool:
        """Whether it explains the output, and far better than the reference does.

        Where the reference explains the output too, a bug must take away a share of the error, for values that recur
        (act of a clamp's limit) are rounded alike; and fitted numbers follow the errors that a row's columns share, so
        they count by their own standard error only.
        """
        gain, excess = reference.cost - s.cost, reference.cost - reference.elements
        if not s.explains:
            return self.rough and not reference.explains and gain > max(LEAST_GAIN, ROUGH_SHARE * excess)
        if self.slight and reference.rms_z <= HONEST and reference.explains:
            return gain > 0.0
        if gain <= LEAST_SHARE * excess:
            return False
        if self.slight:
            return gain > 0.0
        if not reference.explains:
            return gain > LEAST_GAIN + PRICE * self.parameters
        return self.complexity == 0 and gain > max(LEAST_GAIN, LEAST_SHARE * reference.cost)


def slope_bias(numerics: Numerics | None, dtype: str) -> float:
    """How far the slope of an honest kernel may lie from 1: that of its coarsest store.

    numerics: its contract, None when unknown.
    """
    contract = (numerics or FLOOR).resolve(dtype)
    coarsest = min((getattr(contract, name) for name in STORES), key=lambda name: FORMATS[name].precision)
    return BIAS[coarsest] * (1.0 if numerics is None else 0.1)


def number(value: float, error: float) -> str:
    """A number with as many digits as its error allows, and the error: `1.0500 ± 0.0001`."""
    digits = int(np.clip(np.ceil(-np.log10(max(error, 1e-9))), 2, 7))  # fp32 itself holds no more
    return f"{value:.{digits}f} ± {max(error, 10.0**-digits):.{digits}f}"
