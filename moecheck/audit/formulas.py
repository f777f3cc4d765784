"""The global statistics that tests of MoE kernels are judged by, each one formula; NaN where it is undefined."""

from __future__ import annotations

import numpy as np

from moecheck.formats import Float64


@np.errstate(all="ignore")  # NaN and infinities are answers
def calc_diff(out: Float64, ref: Float64) -> float:
    """1 - 2 <x, y> / (<x, x> + <y, y>); NaN for two zero arrays.

    Source: DeepGEMM, deep_gemm/testing/numeric.py.
    """
    return float(1.0 - 2.0 * np.sum(out * ref) / np.sum(out * out + ref * ref))


@np.errstate(all="ignore")
def cosine(out: Float64, ref: Float64) -> float:
    """<x, y> / (|x| |y|); NaN where one of them is zero."""
    return float(np.sum(out * ref) / np.sqrt(np.sum(out * out) * np.sum(ref * ref)))


@np.errstate(all="ignore")
def relative_l2(out: Float64, ref: Float64) -> float:
    """|x - y| / |y|; NaN where both are zero."""
    return float(np.sqrt(np.sum(np.square(out - ref)) / np.sum(np.square(ref))))
