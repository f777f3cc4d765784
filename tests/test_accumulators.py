"""Accumulator profiles: an emulated matrix unit that truncates is accepted under its own profile only."""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moecheck.accumulators import ACCUMULATORS
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.formats import Float64, store
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle

TERMS = 2048
CASE = Case(op="grouped_gemm", num_tokens=4, num_experts=2, hidden_size=TERMS, intermediate_size=64, dtype="bf16")


@cache
def inputs(*, positive: bool) -> dict[str, Any]:
    """Products of fp8 numbers, stored in bf16; all of them positive, or not."""
    given = dict(CASE.inputs())
    rng = np.random.default_rng(5)
    for name in ("x", "w"):
        values = rng.normal(size=given[name].shape)
        fp8 = (np.abs(values) if positive else values).astype(ml_dtypes.float8_e4m3fn)
        given[name] = fp8.astype(ml_dtypes.bfloat16)
    return given


def truncated(values: Float64, bits: int, largest: Float64) -> Float64:
    """Values with `bits` fractional bits below the leading one of `largest` kept, the rest cut off."""
    step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(largest), 2.0**-100))) - bits)
    return np.trunc(values / step) * step


@cache
def emulated(*, positive: bool, promoted_every: int) -> Float64:
    """The grouped product of a unit that aligns each product with its partial sum and keeps 13 fractional bits."""
    given = inputs(positive=positive)
    x, w = (given[name].astype(np.float64) for name in ("x", "w"))
    out, start = np.zeros((len(x), w.shape[1])), 0
    for expert, end in enumerate(given["expert_ends"].tolist()):
        part = np.zeros((end - start, w.shape[1]))
        for k in range(TERMS):
            term = x[start:end, k, None] * w[expert, :, k]
            largest = np.maximum(np.abs(part), np.abs(term))
            part = truncated(part, 13, largest) + truncated(term, 13, largest)
            if promoted_every and (k + 1) % promoted_every == 0:
                out[start:end] += part
                part[:] = 0.0
        out[start:end] += part
        start = end
    return out


def verdict(profile: str, out: Float64, *, positive: bool) -> Verdict:
    oracle = Oracle(load=lambda _: inputs(positive=positive))
    judged = judge(CASE, (store(out, "bf16"),), oracle, Limits(), Numerics(accumulate=profile))
    failing = [judgement.verdict for judgement in judged.judgements if judgement.verdict is not Verdict.PASS]
    return failing[0] if failing else Verdict.PASS


@pytest.mark.parametrize("positive", [True, False], ids=["all positive", "either sign"])
@pytest.mark.parametrize(
    ("profile", "promoted_every"),
    [
        pytest.param("hopper-fp8", 0, id="never promoted"),
        pytest.param("hopper-fp8-promoted-128", 128, id="promoted every 128 terms"),
    ],
)
def test_a_profile_accepts_the_unit_that_it_describes(profile: str, promoted_every: int, *, positive: bool) -> None:
    assert (
        verdict(profile, emulated(positive=positive, promoted_every=promoted_every), positive=positive) is Verdict.PASS
    )


@pytest.mark.parametrize(
    ("profile", "promoted_every"),
    [
        pytest.param("fp32-rn", 0, id="taken for fp32"),
        pytest.param("fp32-rn", 128, id="promoted, taken for fp32"),
        pytest.param("tensor-core-truncating", 128, id="promoted, taken for bf16 tensor cores"),
        pytest.param("hopper-fp8-promoted-128", 0, id="not promoted, though declared"),
    ],
)
def test_sums_of_positive_terms_show_a_lesser_unit(profile: str, promoted_every: int) -> None:
    assert verdict(profile, emulated(positive=True, promoted_every=promoted_every), positive=True) in FAILURES


def test_a_unit_that_is_exact_passes_under_every_profile() -> None:
    given = inputs(positive=True)
    groups = np.searchsorted(given["expert_ends"], np.arange(len(given["x"])), side="right")
    rows = zip(given["x"].astype(np.float64), groups, strict=True)
    exact = np.stack([given["w"][group].astype(np.float64) @ row for row, group in rows])
    assert all(verdict(profile, exact, positive=True) is Verdict.PASS for profile in ACCUMULATORS)


def test_the_bias_covers_what_was_measured_on_sums_of_7168_positive_terms() -> None:
    assert ACCUMULATORS["hopper-fp8"].bias(7168) >= 0.109
    assert ACCUMULATORS["hopper-fp8-promoted-128"].bias(7168) >= 0.0006
    assert ACCUMULATORS["fp32-rn"].bias(7168) == 0.0
    shrunk = -float(
        emulated(positive=True, promoted_every=0).sum() / emulated(positive=True, promoted_every=1).sum() - 1
    )
    assert 0.0 < shrunk <= ACCUMULATORS["hopper-fp8"].bias(TERMS)
