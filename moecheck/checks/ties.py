"""The check of a declared tie rule: among experts with equal inputs the lowest ids are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.legal_sets import Choice
from moecheck.formats import Float64, to_float64
from moecheck.oracle import reference_modules

Bool = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.integer[Any]]


def judge_ties(case: Case, inputs: dict[str, Any], choice: Choice, ids: Ids, judged: Bool) -> Judgement | None:
    """PASS or PROVEN_WRONG for `lowest_index`; None where no row ties by its inputs alone.

    ids: [T, top_k] legal choices, judged: [T] rows whose choice is defined. Only rows count in which every expert that
    rounding could bring in or out has the same logit and bias: such scores are equal however they are computed.
    """
    if choice.group is not None:
        return None
    expected = reference_modules()["topk_routing"].top_ids(choice.c, case.spec.routing.top_k)
    tied = judged & _tied(choice, expected, _same_inputs(case, inputs))
    if not tied.any():
        return None
    wrong = tied & (np.sort(ids, axis=1) != np.sort(expected, axis=1)).any(axis=1)
    numbers = {"tied_share": float(tied.mean())}
    if not wrong.any():
        return Judgement(check="tie", verdict=Verdict.PASS, numbers=numbers)
    token = int(np.flatnonzero(wrong)[0])
    return Judgement(
        check="tie",
        verdict=Verdict.PROVEN_WRONG,
        message=(
            f'It declares tie="lowest_index", and token {token} chose experts {sorted(ids[token].tolist())}, expected '
            f"{sorted(expected[token].tolist())}; the logits and biases that differ between the two are equal. "
            f"{int(wrong.sum())} of {int(tied.sum())} tied tokens are wrong."
        ),
        numbers=numbers,
        where={"token": token},
    )


def _same_inputs(case: Case, inputs: dict[str, Any]) -> list[Float64]:
    """What an expert's choice score is computed from, each [T, E] float64."""
    logits = to_float64(inputs["router_logits"])
    if case.spec.routing.correction_bias == "none":
        return [logits]
    return [logits, np.broadcast_to(to_float64(inputs["correction_bias"]), logits.shape)]


def _tied(choice: Choice, best: Ids, parts: list[Float64]) -> Bool:
    """[T]: several sets are legal, and all experts in which they differ have equal `parts`."""
    inside = np.zeros(choice.c.shape, dtype=np.bool_)
    np.put_along_axis(inside, best.astype(np.int64), True, axis=1)
    low, high = choice.c - choice.eps, choice.c + choice.eps
    stays = low > np.where(inside, -np.inf, high).max(axis=1, keepdims=True)
    out = high < np.where(inside, low, np.inf).min(axis=1, keepdims=True)
    undecided = np.where(inside, ~stays, ~out)
    equal = np.ones(len(inside), dtype=np.bool_)
    for part in parts:
        largest = np.where(undecided, part, -np.inf).max(axis=1)
        equal &= largest == np.where(undecided, part, np.inf).min(axis=1)
    return np.asarray((undecided & inside).any(axis=1) & (undecided & ~inside).any(axis=1) & equal)
