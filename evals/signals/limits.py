"""How far a kernel of a declared precision may depart from the reference path, signal by signal.

Each limit is the looser of a number measured on trained models (docs/e2e.md tells which and how) and of what legal
variants of the reference path do in the same run: another order of sums, experts in that precision.
"""

from __future__ import annotations

from dataclasses import dataclass

from moecheck.evals.backends.records import Precision

KL_FLOORS = 10.0  # a mean divergence of this many floors is a failure
KL_TELLS = 1e-2  # bugs begin at 1e-5: where legal variants alone reach a tenth of this, a pass says nothing
ROUTER_AGREEMENT = 0.999
TIE_GAP = 1e-5  # a token whose choice is nearer than this may go either way
ALPHA = 0.01  # of McNemar's test
LEVEL = 0.90  # of the two-sided interval of the difference: each side at 5 %
SIGMAS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one precision.

    factor: |alpha - 1| and |beta - 1| of the attribution. residual: |y - fit| / |y_ref| over a layer. row: the same of
    the worst row, over what its two summands measure. kl: mean divergence per token. top1: least share of tokens with
    the same most probable token. texts: least share of identical texts.
    """

    factor: float
    residual: float
    row: float
    kl: float
    top1: float
    texts: float


# Two to ten times the worst of the legal variants of both embedded models over generated problem sets (reports/e2e;
# tools/calibrate_e2e.py), texts and top1 a few questions and tokens below. tiny-glm4-moe reached
#   fp32: factor 8e-8, residual 7e-7, row 9e-7, kl 7e-14
#   fp16: factor 2e-4, residual 7e-4, row 2e-3, kl 4e-9
#   bf16: factor 1e-3, residual 5e-3, row 1e-2, kl 6e-7
#   fp8:  factor 1e-2, residual 7e-2, row 2e-1, kl 6e-5, top1 .9997
LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(factor=1e-5, residual=1e-5, row=1e-4, kl=1e-10, top1=0.9995, texts=0.99),
    "fp16": Limits(factor=6e-4, residual=1.5e-3, row=6e-3, kl=3e-8, top1=0.999, texts=0.97),
    "bf16": Limits(factor=3e-3, residual=8e-3, row=4e-2, kl=2e-6, top1=0.998, texts=0.95),
    "fp8": Limits(factor=2e-2, residual=1.2e-1, row=4e-1, kl=2e-4, top1=0.995, texts=0.85),
}
