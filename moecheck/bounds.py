"""Derived limits that verdicts rest on; each cites its derivation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .formats import FORMATS, Float64, ulp

FALSE_ALARM = 1e-6
SLACK = 1.5
GLOBAL_FLIPS, ROW_FLIPS = 1.5, 10.0
# A factor of this many times a limit surely shows: an honest error may use up the limit on the other side. In a run
# with limits of 5.9e-6 and more a factor of 1 + 7e-6 on the routing weights passed, 1 + 1.5e-5 failed on 5 cases of 52.
SURELY = 2.0
FLUSHED = 2.0**-126  # the smallest normal number of fp32 and bf16, below which devices flush to zero
# How far the slope of an honest kernel lies from 1 where its rounding points are not known: a product of two rounded
# numbers rounds with a bias, -1.2e-4 for act(g) * u in bf16 (docs/error-model.md).
SMOOTH_BIAS = {"bf16": 3e-4, "fp16": 4e-5, "fp32": 1e-7}
FP32_UNIT = 2.0**-24  # unit roundoff


def z_limit(elements: int) -> float:
    """Largest |out - ref| / sigma among `elements` that honest rounding explains.

    The maximum of n independent normal variates exceeds sqrt(2 ln(2n/p)) with probability below p (union bound on the
    tail exp(-z^2/2)); p = 1e-6. The factor 1.5 pays for sigma's own error: contracts with more or fewer stores than
    assumed measure 0.70 to 1.25 times sigma.
    """
    return float(SLACK * np.sqrt(2 * np.log(2 * max(elements, 1) / FALSE_ALARM)))


def value_bound(sigma: Float64) -> Float64:
    """Bound on |out - ref| of honest elements with standard deviations `sigma`: z_limit sigma, and a flush to zero.

    0 where sigma is 0: equality is required. A sigma that is not finite explains nothing, so there too.
    """
    explains = np.isfinite(sigma) & (sigma > 0)
    return np.where(explains, z_limit(sigma.size) * np.where(explains, sigma, 0.0) + FLUSHED, 0.0)


def projection_limit(variance: Float64, flip: Float64, *, flips: float) -> Float64:
    """Limit of |sum_i c_i error_i| with the given variance: 7.5 standard errors, and `flips` flips.

    5.5 standard errors would do for one in 2.5e7; the rest pays for what the variance leaves out. flip: the most that
    one number which rounds to the other side adds; where less than one is expected the sum is not normal, and one of
    them must never fail a kernel. One flip of a gate moves act(g) u by several units in the last place and, through
    them, more of a row's outputs than it should (6 flips measured on an H200), hence ROW_FLIPS; among all rows the
    largest flip is far above a usual one, hence the smaller GLOBAL_FLIPS.
    """
    limit: Float64 = 7.5 * np.sqrt(variance) + flips * flip
    return limit


@lru_cache(maxsize=1 << 14)  # asked for each of many groups of a few sizes
def mean_square_limit(freedom: int, *, groups: int) -> float:
    """Largest root mean square of z over elements worth `freedom` independent ones, the worst of `groups` such sets.

    The chi-square quantile at 1e-6 / groups in the approximation of Wilson and Hilferty (Proc. Natl. Acad. Sci. 17,
    1931), times 1.25 for sigma's own error.
    """
    n = max(freedom, 1)
    quantile = np.sqrt(2.0 * np.log(max(groups, 1) / FALSE_ALARM))
    square = (1.0 - 2.0 / (9.0 * n) + quantile * np.sqrt(2.0 / (9.0 * n))) ** 3
    return float(1.25 * np.sqrt(square))


def disagreement_limit(expected: float, *, rows: int) -> float:
    """Largest share of outputs whose bits differ from the right contract's reference, `expected` of which are flips.

    A kernel's accumulation is not ours: blocks, split sums and tensor cores leave more or fewer flips. Measured over
    the built-in kernels (reports/contracts/cpu.txt) their share is at most 1.2 times the simulated one; a store too
    many or too few changes 0.1 or more of the outputs. One flip before the second GEMM changes about a tenth of its
    token's row, which counts where there are few rows, and one of its largest numbers far more, which counts where
    there is only one: 0.35 of it measured (situ in fp16, 128 units).
    """
    return 3.0 * expected + 0.02 + (0.2 / rows if rows > 1 else 0.4)


# Slope of an honest kernel against the reference of a contract that is nearly its own: one more rounded product. Where
# all terms have one sign it is twice as large (2.4e-4 measured in bf16).
NEAR_BIAS = {"bf16": 1.5e-4, "fp16": 2e-5, "fp32": 1e-7}


def truncation_bias(terms: int, dtype: str) -> float:
    """Relative deviation that tensor cores' truncating accumulators explain for sums of `terms` products.

    Measured on an H200 against the rounded reference: -3e-6 at 1,024 and -1.8e-5 at 7,168 terms of bf16 (numerics.md
    section 3), that is 2.9e-9 a term at most; 5e-9 are allowed. fp32 operands do not go through tensor cores. A
    library's fp32 exp or erf may be off to one side by a fifth of 2^-24 on average (measured); 2^-24 is allowed.
    """
    return FP32_UNIT + (0.0 if dtype == "fp32" else 5e-9 * terms)


def score_eps(scores: Float64, bias: Float64 | float, dtype: str, *, spread: Float64 | float = 0.0) -> Float64:
    """How far a kernel's choice score may be from the float64 one.

    Exponential, quotient and addition in fp32 each round by half an ulp or, for library exponentials, up to two
    ulps: four ulps of max(|score|, |bias|) in all, and never less than the smallest normal number, below which
    devices flush to zero. One and a half ulps of `dtype` more where scores are stored in a narrower format: half for
    the score, and up to one for its sum with the bias, whose size may double.
    spread: |l - max l| of a softmax; rounding it makes the score relatively wrong by 3 * 2^-24 of it (weight_bound).
    """
    size = np.maximum(np.abs(scores), np.abs(bias))
    eps = 4 * ulp(size, "fp32") + 3 * FP32_UNIT * spread * np.where(np.isfinite(scores), np.abs(scores), 0.0) + FLUSHED
    return eps if dtype == "fp32" else eps + 1.5 * ulp(size, dtype)


def weight_bound(weights: Float64, logits: Float64, *, top_k: int, dtype: str, scores: str = "fp32") -> Float64:
    """Bound on |w - w64| for routing weights that an fp32 kernel computes from given logits.

    exp(l - max l) carries the rounding of its argument, up to 2^-24 |l - max l|, twice that again where it is computed
    as a power of two (log2 e and the product with it round), and up to 2 ulps (2^-22) of its own; a softmax or
    renormalisation adds a sum (half an ulp per term, relative to a positive sum: up to (log2 E + top_k) 2^-24 for trees
    and short loops) and a scaling one more product. One store in `dtype` when narrower. Scores kept in a
    narrower format carry its half ulp through each step: score, top_k - 1 additions, eps, quotient and factor.
    weights: [T, k']. logits: [T, E].
    """
    finite = np.where(np.isfinite(logits), logits, 0.0)
    spread = np.max(finite, axis=1, keepdims=True, initial=0.0) - np.min(finite, axis=1, keepdims=True, initial=0.0)
    rounding = FP32_UNIT * (3 * np.minimum(spread, 128.0) + 16 + top_k + np.log2(max(logits.shape[1], 2)))
    bound: Float64 = np.abs(weights) * rounding + FLUSHED
    if scores != "fp32":
        bound = bound + np.abs(weights) * (top_k + 3) * 2.0 ** -FORMATS[scores].precision
    return bound if dtype == "fp32" else bound + ulp(weights, dtype)
