"""Signal 2: how far the distributions over the next token are apart, token by token of the gold answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from moecheck.errors import HarnessError
from moecheck.evals.backends.records import FloatRows, Precision, Scored
from moecheck.evals.statistics.clusters import MeanTest, mean_test

from .limits import KL_FLOORS, KL_TELLS, LIMITS, SIGMAS
from .signal import Outcome, Signal, absent

NAME = "teacher-forced divergence"
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDivergence:
    """One gold answer of n tokens. gold_change: [n] ln p_ref - ln p_cand of the gold tokens. kl: [n] sum_v p_ref
    ln(p_ref / p_cand). same_top1: [n] whether the most probable token is the same. Empty where rows were not given.
    """

    question: int
    gold_change: Float64
    kl: Float64
    same_top1: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Of an arm from the baseline, over all tokens of all answers.

    kl_mean, kl_p99, kl_max, top1: None without rows. proxy: mean of gold_change^2 / 2, which is about the KL where
    gold tokens are likely. gold: Student's t over the answers' means of gold_change. exact: not one bit differs.
    """

    kl_mean: float | None
    kl_p99: float | None
    kl_max: float | None
    top1: float | None
    proxy: float
    gold: MeanTest
    tokens: int
    exact: bool


def compare(question: int, reference: Scored, candidate: Scored) -> AnswerDivergence:
    """One answer under both arms. Raises HarnessError where they were not given the same tokens."""
    if reference.token_ids != candidate.token_ids:
        raise HarnessError(f"question {question}: the arms scored different tokens.")
    kl, same = np.zeros(0), np.zeros(0, np.bool_)
    if reference.rows is not None and candidate.rows is not None:
        kl = kl_rows(reference.rows, candidate.rows)
        same = reference.rows.argmax(axis=1) == candidate.rows.argmax(axis=1)
    elif reference.top1 is not None and candidate.top1 is not None:
        same = reference.top1 == candidate.top1
    change = np.asarray(reference.logprobs, np.float64) - np.asarray(candidate.logprobs, np.float64)
    return AnswerDivergence(question=question, gold_change=change, kl=kl, same_top1=np.asarray(same))


def kl_rows(reference: FloatRows, candidate: FloatRows) -> Float64:
    """[n] KL divergences of log-probability rows [n, V].

    Both are normalised again in float64 first: fp32 rows sum to 1 only within their rounding, which would drown
    divergences below 1e-7. What is -inf in the reference adds nothing; NaN stays NaN.
    """
    p, q = (np.asarray(special.log_softmax(rows.astype(np.float64), axis=1)) for rows in (reference, candidate))
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    return np.asarray(np.maximum(terms.sum(axis=1), 0.0), dtype=np.float64)


def summarise(answers: Sequence[AnswerDivergence]) -> Divergence:
    """The numbers of one arm against the baseline."""
    kl = np.concatenate([answer.kl for answer in answers]) if answers else np.zeros(0)
    same = np.concatenate([answer.same_top1 for answer in answers]) if answers else np.zeros(0, np.bool_)
    change = np.concatenate([answer.gold_change for answer in answers]) if answers else np.zeros(0)
    means = [float(answer.gold_change.mean()) for answer in answers if answer.gold_change.size]
    return Divergence(
        kl_mean=float(kl.mean()) if kl.size else None,
        kl_p99=float(np.quantile(kl, 0.99)) if kl.size else None,
        kl_max=float(kl.max()) if kl.size else None,
        top1=float(same.mean()) if same.size else None,
        proxy=float(np.square(change).mean() / 2) if change.size else math.nan,
        gold=mean_test(means),
        tokens=int(change.size),
        exact=not change.any() and not kl.any(),
    )


def teacher_forced(candidate: Divergence | None, floors: Sequence[Divergence], precision: Precision) -> Signal:
    """The signal; floors: the legal variants' and the repeated baseline's departures from the baseline."""
    if candidate is None or candidate.tokens == 0:
        return absent(NAME, "this backend gives no log-probabilities")
    if candidate.kl_mean is None and not floors:
        return Signal(
            name=NAME,
            outcome=Outcome.INCONCLUSIVE,
            message="the baseline's own noise was not measured",
            value=candidate.proxy,
        )
    limits = LIMITS[precision]
    value = candidate.proxy if candidate.kl_mean is None else candidate.kl_mean
    what = "half the mean squared change of gold log-probabilities" if candidate.kl_mean is None else "mean KL"
    own = [floor.proxy if candidate.kl_mean is None else floor.kl_mean for floor in floors]
    floor = max((one for one in own if one is not None), default=None)
    limit = max(limits.kl, KL_FLOORS * floor) if floor is not None else limits.kl
    top1, least = candidate.top1, _top1_limit(candidate, floors, limits.top1)
    numbers = _numbers(candidate, least)
    if not value <= limit:
        size = f"{value / limits.kl:.3g} times the limit" if floor is None else f"{_times(value, floor)} the floor"
        outcome, message = Outcome.FAIL, f"{what} per token is {value:.2e}, {size}"
    elif top1 is not None and not top1 >= least:
        outcome = Outcome.FAIL
        message = (
            f"the most probable token is the same for {100 * top1:.4g} % of the tokens, at least {100 * least:.4g} %"
        )
    elif limit > KL_TELLS:
        outcome = Outcome.INCONCLUSIVE
        message = f"{what} per token is {value:.2e}, but legal variants reach {limit / KL_FLOORS:.2e}"
    else:
        outcome, message = Outcome.PASS, f"{what} per token is {value:.2e}, at most {limit:.2e}"
    return Signal(name=NAME, outcome=outcome, message=message, value=value, limit=limit, floor=floor, numbers=numbers)


def _top1_limit(candidate: Divergence, floors: Sequence[Divergence], usual: float) -> float:
    """The precision's, or what chance leaves of the least among the legal variants.

    Sigma takes two tokens more, one of them different, so that it is not 0 where no token of a variant differs.
    """
    shares = [floor.top1 for floor in floors if floor.top1 is not None]
    n = max(candidate.tokens, 1)
    rates = [(share * n + 1) / (n + 2) for share in shares or [1.0]]
    sigmas = [math.sqrt(2 * rate * (1 - rate) / n) for rate in rates]
    return min([usual, *(share - SIGMAS * sigma for share, sigma in zip(shares or [1.0], sigmas, strict=True))])


def _numbers(one: Divergence, top1_limit: float) -> dict[str, float]:
    known = {
        "kl_mean": one.kl_mean,
        "kl_p99": one.kl_p99,
        "kl_max": one.kl_max,
        "top1": one.top1,
        "gold_change_mean": one.gold.mean,
        "gold_change_t": one.gold.t,
        "gold_change_p": one.gold.p,
        "half_mean_square_gold_change": one.proxy,
        "tokens": float(one.tokens),
        "top1_limit": top1_limit,
    }
    return {name: value for name, value in known.items() if value is not None}


def _times(value: float, floor: float) -> str:
    return f"{value / floor:.3g} times" if floor > 0 else "above"
