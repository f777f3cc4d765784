"""The check of many elements: honest kernels pass in every format; what no single element shows is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.checks.sample import FEWEST
from moecheck.checks.statistics import judge_statistics
from moecheck.formats import AnyArray, Float64, store, to_float64
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle, Values
from tests.numpy_experts import experts

STORED = Numerics(gate_up="input", act_times_up="input", per_expert="input")
ORACLE = Oracle()
SEEDS = range(5)


def plain(dtype: str, seed: int = 0) -> Case:
    return Case(op="fused_experts", dtype=dtype, seed=seed)


def found(case: Case, out: AnyArray, numerics: Numerics | None = STORED, *, declared: bool = True) -> Judgement:
    judged = judge(case, (out,), ORACLE, Limits(), numerics, declared=declared)
    return next(judgement for judgement in judged.judgements if judgement.check == "statistics")


def honest(case: Case, *, factor: float = 1.0, numerics: Numerics = STORED) -> AnyArray:
    return experts(case, ORACLE.inputs(case), numerics, factor=factor)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_an_honest_kernel_passes_and_says_what_it_would_have_shown(dtype: str, seed: int) -> None:
    judgement = found(plain(dtype, seed), honest(plain(dtype, seed)))

    assert judgement.verdict is Verdict.PASS, judgement.message
    assert judgement.numbers["smallest_factor"] < {"bf16": 2e-4, "fp16": 2e-4, "fp32": 2e-5}[dtype]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("dtype", "factor"), [("bf16", 1.0002), ("fp16", 1.0002), ("fp32", 1.00002)])
def test_routing_weights_a_little_too_large_are_seen(dtype: str, factor: float, seed: int) -> None:
    case = plain(dtype, seed)
    judged = judge(case, (honest(case, factor=factor),), ORACLE, Limits(), STORED)

    assert any(judgement.verdict is Verdict.FAIL for judgement in judged.judgements)


def test_without_a_contract_a_factor_of_a_few_thousandths_is_seen() -> None:
    case = plain("bf16")

    assert found(case, honest(case), None).verdict is Verdict.PASS
    wrong = found(case, honest(case, factor=1.004), None)
    assert wrong.verdict is Verdict.FAIL
    assert "output as a whole" in wrong.message


def test_a_store_that_truncates_is_seen() -> None:
    case = plain("bf16")
    kept = honest(case, numerics=replace(STORED, out="fp32"))
    bits = ORACLE.values(case, replace(STORED, out="fp32")).rounded.astype(np.float32).view(np.uint32)
    truncated = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(kept.dtype)

    assert found(case, truncated).verdict is Verdict.FAIL
    assert found(case, truncated, None).verdict is Verdict.FAIL


def _row(out: Float64, noise: Float64) -> None:
    out[7] *= 1.02


def _column(out: Float64, noise: Float64) -> None:
    out[:, 11] += 3.0 * noise[:, 11]


def _offset(out: Float64, noise: Float64) -> None:
    out += 0.4 * np.abs(noise)


def _everywhere(out: Float64, noise: Float64) -> None:
    out += 2.0 * noise


@pytest.mark.parametrize(
    ("plant", "statistic"),
    [
        (_row, "worst_row_slope_error"),
        (_column, "worst_column_rms_z"),
        (_offset, "mean_z"),
        (_everywhere, "rms_z"),
    ],
)
def test_each_statistic_sees_what_it_is_for(plant: Callable[[Float64, Float64], None], statistic: str) -> None:
    case = plain("fp32")
    values = ORACLE.values(case, STORED)
    noise = values.sigma * np.random.default_rng(3).standard_normal(values.sigma.shape)
    out = to_float64(honest(case))
    assert _passes(out, values, statistic)

    plant(out, noise)

    assert not _passes(out, values, statistic)


def _passes(out: Float64, values: Values, statistic: str) -> bool:
    """Whether the statistic lies within its limit, whatever the others say."""
    judgement = judge_statistics(
        out,
        values,
        step=np.spacing(np.abs(out).astype(np.float32)).astype(np.float64),
        bias=0.0,
        row="token",
        bits=False,
    )
    assert judgement is not None
    return abs(judgement.numbers[statistic]) <= judgement.numbers[f"limit_{statistic}"]


def test_an_expert_with_noise_of_its_own_is_named() -> None:
    case = replace(plain("fp32"), num_experts=16)
    values, ids = ORACLE.values(case, STORED), ORACLE.inputs(case)["topk_ids"]
    out = to_float64(honest(case))
    rows = np.flatnonzero((ids == 5).any(axis=1))
    out[rows] += 4.0 * (values.sigma * np.random.default_rng(4).standard_normal(out.shape))[rows]

    judgement = judge_statistics(
        out, values, step=np.full(out.shape, 1e-7), bias=0.0, row="token", bits=False, groups={"expert": ids}
    )

    assert judgement is not None
    assert judgement.numbers["worst_expert_rms_z"] > judgement.numbers["limit_worst_expert_rms_z"]
    assert judgement.verdict is Verdict.FAIL


def test_bits_that_should_agree_and_do_not_are_held_against_a_declared_contract_only() -> None:
    case, other = plain("bf16"), replace(STORED, act="input")
    out = honest(case, numerics=other)

    declared = found(case, out)
    assert declared.verdict is Verdict.FAIL
    assert declared.numbers["disagreement"] > 0.1
    assert found(case, out, other).verdict is Verdict.PASS
    assert found(case, out, declared=False).verdict is Verdict.PASS


def test_elements_that_are_not_finite_are_left_to_the_other_check() -> None:
    case = plain("bf16")
    out = to_float64(honest(case))
    out[3, 5] = np.nan

    assert found(case, store(out, "bf16")).verdict is Verdict.PASS
    assert judge(case, (store(out, "bf16"),), ORACLE, Limits(), STORED).judgements[1].verdict is Verdict.PROVEN_WRONG


def test_few_elements_are_not_averaged() -> None:
    value = np.ones((1, FEWEST - 1))
    values = Values(true=value, sigma=value * 1e-3, rounded=value)

    assert judge_statistics(value, values, step=value * 1e-3, bias=0.0, row="token", bits=False) is None


@pytest.mark.parametrize("factor", [1.0003, 1.0008, 1.002])
def test_a_factor_is_seen_under_a_contract_that_was_found(factor: float) -> None:
    case = plain("bf16")
    judged = judge(case, (honest(case, factor=factor),), ORACLE, Limits(), STORED, declared=False)

    assert any(judgement.verdict is Verdict.FAIL for judgement in judged.judgements)


def test_a_kernel_that_rounds_elsewhere_than_found_passes() -> None:
    case = plain("bf16")
    for other in (replace(STORED, act="input"), replace(STORED, weighted="input"), Numerics()):
        judged = judge(case, (honest(case, numerics=other),), ORACLE, Limits(), STORED, declared=False)
        near = [judgement for judgement in judged.judgements if judgement.check == "near_contract"]
        assert near
        assert all(judgement.verdict is Verdict.PASS for judgement in judged.judgements), judged.judgements


def test_rows_whose_errors_overflow_are_left_out() -> None:
    case = plain("bf16")
    values = ORACLE.values(case, STORED)
    assert values.model is not None
    broken = values.copy()
    assert broken.model is not None
    broken.model.slope_variance[3] = np.inf
    broken.model.disagreement[3] = np.nan
    judgement = judge_statistics(
        to_float64(honest(case)), broken, step=np.abs(values.true) * 2.0**-8, bias=0.0, row="token", bits=True
    )

    assert judgement is not None
    assert judgement.verdict is Verdict.PASS, judgement.message
