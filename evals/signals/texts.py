"""Signal 4: how many greedy answers are the same, token by token, and where the others part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moecheck.errors import HarnessError
from moecheck.evals.backends.records import Generation, Precision

from .limits import LIMITS, SIGMAS
from .signal import Outcome, Signal

NAME = "identical texts"
LEAST_LIMIT = 0.8  # of identical texts that still say something by themselves: the weakest bugs keep .95, most .87
MOST_ALIKE = 0.1  # with fewer different answers than this share, texts that agree say nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAgreement:
    """same: answers that are equal. n: answers. divergences: first token (or character) that differs, of the others.

    distinct: different answers of the baseline among the n.
    """

    same: int
    n: int
    divergences: tuple[int, ...]
    distinct: int

    @property
    def rate(self) -> float:
        return self.same / self.n if self.n else math.nan


def first_divergence(one: Generation, two: Generation) -> int | None:
    """Index of the first token that differs, of the first character where tokens are unknown; None if equal.

    What comes after the end token or stop string is no part of an answer.
    """
    if one.token_ids is not None and two.token_ids is not None:
        return _first(one.token_ids, two.token_ids)
    return _first(one.text, two.text)


def agree(baseline: Sequence[Generation], candidate: Sequence[Generation]) -> TextAgreement:
    """Of two arms' answers to the same prompts."""
    if len(baseline) != len(candidate):
        raise HarnessError(f"texts of {len(baseline)} and {len(candidate)} prompts cannot be compared.")
    places = [first_divergence(one, two) for one, two in zip(baseline, candidate, strict=True)]
    return TextAgreement(
        same=places.count(None),
        n=len(places),
        divergences=tuple(sorted(place for place in places if place is not None)),
        distinct=len({one.text for one in baseline}),
    )


def identical_texts(
    candidate: TextAgreement, floors: Sequence[TextAgreement], precision: Precision, *, white_box: bool
) -> Signal:
    """The signal; floors: the legal variants and the repeated baseline.

    white_box: the precision's own limit may be used; without (a server, whose precision nobody knows) only what its
    baseline does when it is asked again counts.
    """
    usual = LIMITS[precision].texts if white_box else None
    limit = _limit(candidate, floors, usual)
    least = min((floor.rate for floor in floors if floor.n), default=None)
    middle = candidate.divergences[len(candidate.divergences) // 2] if candidate.divergences else None
    numbers = {"same": float(candidate.same), "n": float(candidate.n), "distinct": float(candidate.distinct)}
    numbers |= {"median_first_divergence": float(middle)} if middle is not None else {}
    words = f"{candidate.same} of {candidate.n} greedy answers are the same ({100 * candidate.rate:.4g} %)"
    if candidate.n == 0 or limit is None:
        outcome, words = Outcome.INCONCLUSIVE, f"{words}; the baseline's own noise was not measured"
    elif not candidate.rate >= limit:
        outcome, words = Outcome.FAIL, f"{words}, and legal variants would have {100 * limit:.4g} %"
    elif not white_box and limit < LEAST_LIMIT:
        outcome = Outcome.INCONCLUSIVE
        words = f"{words}, but with so few answers, or so much noise, even {100 * limit:.3g} % would be no failure"
    elif candidate.distinct < max(2.0, MOST_ALIKE * candidate.n):
        outcome = Outcome.INCONCLUSIVE
        words = f"{words}, but the model gave only {candidate.distinct} different answers to {candidate.n} questions"
    else:
        outcome = Outcome.PASS
    value = candidate.rate if candidate.n else None
    return Signal(name=NAME, outcome=outcome, message=words, value=value, limit=limit, floor=least, numbers=numbers)


def _limit(candidate: TextAgreement, floors: Sequence[TextAgreement], usual: float | None) -> float | None:
    """The least rate: the precision's, or 3 sigma below the least of the legal variants.

    Sigma takes two answers more, one of them different (Agresti and Coull's rule), so that it is not 0 at rate 1.
    """
    limits = [usual] if usual is not None else []
    for floor in floors:
        if floor.n and candidate.n:
            rate = (floor.same + 1) / (floor.n + 2)
            sigma = math.sqrt(rate * (1 - rate) * (1 / floor.n + 1 / candidate.n))
            limits.append(max(0.0, floor.rate - SIGMAS * sigma))
    return min(limits) if limits else None


def _first(one: Sequence[object], two: Sequence[object]) -> int | None:
    for index, (left, right) in enumerate(zip(one, two, strict=False)):
        if left != right:
            return index
    return None if len(one) == len(two) else min(len(one), len(two))
