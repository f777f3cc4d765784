"""Error bounds that the tests compare with, each derived here from the roundings of the formula that it bounds.

Notation: u is the unit roundoff, gamma(n) = n u / (1 - n u) bounds the relative error of n roundings in a row
(N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

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


# Share of bf16 outputs that must equal the reference with the declared contract's roundings, bit for bit. A kernel's
# fp32 accumulation differs from float64 by about sqrt(K) u32 of a value; a bf16 store turns that into another bf16
# number with probability 2^17 sqrt(K) u32 = sqrt(K) / 128 at most per store for K <= 64: one in 16. Measured on honest
# kernels 0.95 to 1 at K <= 512, while one undeclared bf16 store leaves at most 0.72.
AGREEMENT = 0.9


def largest_z(count: int, false_alarms: float = 1e-6) -> float:
    """Bound on max |error / sigma| over `count` elements whose errors have standard deviation sigma.

    sqrt(2 ln(2 n / p)) is the Gaussian tail at probability p for n elements; 1.5 covers the error model's own
    calibration (independent, uniform roundings), as the acceptance model sets it.
    """
    return 1.5 * math.sqrt(2 * math.log(2 * count / false_alarms))


def moe_layer_bound(*, num_experts: int, top_k: int, largest_logit: float) -> float:
    """Error of a layer's output row, relative to its largest sum of |weighted expert outputs|, experts in float64.

    The routing weights come from float32; the slots may be added up in float32: one rounding per product, per
    addition, for the factor, for the shared expert and for the store, top_k + 4 in all. The experts' own float64
    errors are 2^-29 of these and vanish in one more, unless a row's outputs are 2^-29 / (H + I) of the magnitudes
    that cancel in them.
    """
    weights = routing_weight_bound(num_experts=num_experts, top_k=top_k, largest_logit=largest_logit, unit=U32)
    return weights + gamma(top_k + 5, U32)


def expert_products_bound(
    *, magnitude: npt.NDArray[np.float64], hidden_size: int, intermediate_size: int, top_k: int, unit: float
) -> npt.NDArray[np.float64]:
    """Absolute difference of two evaluations of sum_s w_s (W2 f(W1 x + b1) + b2) with unit roundoff `unit`.

    magnitude: the sum with every product replaced by its absolute value, |act(g)| by its bound A, and h by
    A (|u| + beta). A is G = |W1| |x| + |b1| itself where |act(g)| <= |g| (silu, gelu, gelu_tanh, situ), or G^2 for
    relu2. g is off by gamma(H + 2) G; |act'| <= 1.2 (2 G for relu2) turns it into at most 2 gamma(H + 2) A, and u adds
    gamma(H + 2) once. ELEMENTARY + 12 roundings evaluate act and the product, I + 2 the second product with its bias,
    top_k + 2 the weighted sum. Both evaluations may be off: twice.
    """
    roundings = 3 * (hidden_size + 2) + ELEMENTARY + 12 + intermediate_size + 2 + top_k + 2
    return 2 * gamma(roundings, unit) * magnitude


def elementwise_bound(*, magnitude: npt.NDArray[np.float64], unit: float) -> npt.NDArray[np.float64]:
    """Absolute difference of two evaluations of act(g) m: ELEMENTARY for each of two functions in it and 24 for the
    products, sums and the degree 8 rational of erfc, on terms of absolute value `magnitude` = |g| |m| (g^2 for relu2).
    """
    return 2 * gamma(2 * ELEMENTARY + 24, unit) * magnitude


# Two Horner schemes of degree 8 with positive terms (2 roundings a step each, their quotient), two exponentials, the
# products: relative, in units roundoff, for each side of a comparison with a library's erfc of 2 ulp.
ERFC_ROUNDINGS = 2 * (2 * 8) + 1 + 2 * ELEMENTARY + 4 + ELEMENTARY

# A central difference (f(g + d) - f(g - d)) / 2 d has the error d^2 |f'''| / 6 + |f| 2 u64 ELEMENTARY / d; with
# d = 2^-14, |f'''| <= 8 and |f| <= 64 in the tests these are below 2^-27.5 and 2^-30.
DIFFERENCE_STEP = 2.0**-14
DIFFERENCE_BOUND = 2.0**-27

# The same for an expert's output along its routing weight, where |d^3 y / dw^3| <= 256 (g and u about 2 w) leaves
# d^2 256 / 6 < 2^-22.
SLOPE_BOUND = 2.0**-22

# rms((kernel - value) / sigma) of a kernel that rounds where its contract says: 1 by construction. Half, and one and a
# half, leave room for blocked accumulation (smaller) and errors shared by the columns of a token (either way).
CALIBRATED_RMS = (0.5, 1.5)

# The same against fp32 BLAS, whose blocked and vectorised sums have shorter chains than the model's K: at most 16
# partial sums are added in parallel, which divides the accumulation's standard deviation by at most sqrt(16).
BLOCKED_RMS = (0.5 / 4, 1.5)

# Share of bit-identical elements under the right contract: a store flips where fp32 noise crosses a rounding boundary,
# sqrt(K / 6) 2^-24 / 2^-8 < 2^-12 of them for K <= 512, and the flips upstream of an output, top_k I of them, each move
# it by 1 / sqrt(top_k I) of its own noise: 1 % for the shapes tested, five times that allowed.
AGREEMENT = 0.95


def z_limit(count: int) -> float:
    """Largest |z| among `count` honest elements: 1.5 sqrt(2 ln(2 count / 1e-6)), the union bound at 1e-6 times 1.5."""
    return 1.5 * math.sqrt(2.0 * math.log(2.0 * count / 1e-6))


# |variance - 1| of n normal quantiles at the midpoints (i + 1/2) / n, n = 4096. The squared quantile is convex on each
# half, so a cell's midpoint falls short of its integral by at most a quarter of the rise over the cell (Hermite and
# Hadamard): together z^2 / 4n up to the last edge z = 3.49. The last cell's mean square exceeds its midpoint's by less
# than 2, the difference between E[z^2 | z > a] and a^2. Both halves: 2 (3.05 + 2) / n; 2^-20 of rounding is far below.
TABLE_VARIANCE = 2 * (3.49**2 / 4 + 2) / 4096

# Root mean squares that make a case telling: gate and up beyond the linear part of an activation, below its saturation,
# outputs about 1. Scales are rounded to powers of two, a factor of sqrt(2) either way about 2 (and again for the
# output, whose activation enters by an estimate).
GATE_UP_RMS = (1.0, 3.0)
OUTPUT_RMS = (0.3, 3.0)

# Mean square of flips over the variance that the flip law gives them: the law is an average over where a boundary lies,
# takes |d| of a normal d, and overlaps where an error is about half a step (numerics.md section 4: V + q^2/6 there).
FLIP_VARIANCE = (0.5, 1.5)
