"""Error bounds that the tests compare with, each derived here from the roundings of the formula that it bounds.

Notation: u is the unit roundoff, gamma(n) = n u / (1 - n u) bounds the relative error of n roundings in a row
(N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1).
"""

from __future__ import annotations

import math

U32 = 2.0**-24
U64 = 2.0**-53

# Roundings that one exp, log1p or tanh of a maths library may cost: 2 ulp, each of two units roundoff at most.
ELEMENTARY = 4


def gamma(roundings: float, unit: float) -> float:
    """Relative error of `roundings` roundings with unit roundoff `unit`."""
    return roundings * unit / (1 - roundings * unit)


def routing_weight_bound(*, num_experts: int, top_k: int, largest_logit: float, unit: float) -> float:
    """Relative error of a routing weight computed in floating point from logits of absolute value <= largest_logit.

    A logit as scored is off by largest_logit times: 1 for its own rounding, ELEMENTARY + 3 for softcap * tanh(l /
    softcap) and 1 for adding a bias; subtracting the maximum adds 2. The exponential turns this absolute error into a
    relative one (for sigmoid and sqrt(softplus) it shrinks: the slopes of their logarithms are at most 1) and costs
    ELEMENTARY. A score divides one such power by a sum of num_experts of them: twice the error, plus num_experts.
    Renormalising divides by a sum of top_k scores, plus eps: twice again, plus top_k + 1. The factor and the per-
    expert scale cost two roundings each.
    """
    logit = (ELEMENTARY + 7) * max(1.0, largest_logit)
    score = 2 * (logit + ELEMENTARY) + num_experts
    return gamma(math.ceil(2 * score + top_k + 5), unit)
