"""How every token of a large case is checked by what the reference knows of a few: kernel against kernel."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moecheck import draw
from moecheck.bounds import FLUSHED, z_limit
from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.legal_sets import ambiguous_rows, choice_of
from moecheck.checks.place import names, shares
from moecheck.checks.sampled import finite_rows
from moecheck.checks.statistics import reproduces
from moecheck.formats import AnyArray, Float64, to_float64
from moecheck.kernel import Declaration
from moecheck.numerics import Numerics
from moecheck.ops import LAYERS
from moecheck.oracle import Oracle, Values
from moecheck.relations.relation import Call
from moecheck.relations.rows import take_rows
from moecheck.sampled_inputs import lazy_inputs, sampled_rows

Ids = npt.NDArray[np.intp]
CALLS = ("sampled_crowd", "token_order")
ROWS = 256  # decoded at a time: bounds the extra memory
FEWEST = 16  # sampled rows from whose spread that of all rows is guessed
MANY_TIMES = 4.0  # an honest row's root mean square error is less than so many times the largest one of the sample


def all_token_calls(case: Case) -> list[Call]:
    """Two calls with as many tokens: copies of the sampled ones, and all tokens in reverse order."""
    inputs = lazy_inputs(case)
    return [
        take_rows(case, inputs, sampled_rows(case)[crowd(case)]),
        take_rows(case, inputs, np.arange(case.num_tokens)[::-1].copy()),
    ]


@lru_cache(maxsize=4)
def crowd(case: Case) -> Ids:
    """[T]: which of the sampled tokens each token of the first call is a copy of."""
    count = len(sampled_rows(case))
    return np.asarray(draw.integers((case.key, "crowd"), (case.num_tokens,), below=count), np.intp)


def judge_all_token_calls(
    oracle: Oracle,
    declaration: Declaration,
    case: Case,
    base: AnyArray,
    further: tuple[AnyArray, ...],
    numerics: Numerics | None,
) -> tuple[Judgement, ...]:
    """base: [T, H], output on the case itself, whose sampled rows passed. further: those of `all_token_calls`."""
    values = _values(oracle, declaration, case, base, numerics)
    return (
        _row_sizes(case, base, values),
        *(
            judge(case, base, out, values, declaration)
            for judge, out in zip((_crowd, _order), further, strict=False)
            if out.shape == base.shape and out.dtype == base.dtype
        ),
    )


def _values(oracle: Oracle, declaration: Declaration, case: Case, base: AnyArray, numerics: Numerics | None) -> Values:
    """What the sampled rows were judged against; rows of a layer whose choice is open are allowed anything."""
    values = oracle.values(case, numerics)
    sampled = to_float64(base[sampled_rows(case)])
    if numerics is not None and declaration.numerics is None and not reproduces(sampled, values):
        values = oracle.values(case, None)
    if case.op not in LAYERS:
        return values
    values = values.copy()
    values.sigma[ambiguous_rows(choice_of(case, oracle.inputs(case), numerics), case.spec.routing)] = np.inf
    return values


def _row_sizes(case: Case, base: AnyArray, values: Values) -> Judgement:
    """FAIL where a token's output is much larger or smaller than its weights make those of the sampled tokens.

    This sees tokens that lost experts, as where an expert takes only so many.
    """
    inputs, rows = lazy_inputs(case), sampled_rows(case)
    says = "a token's output is as large as its weights make it"
    if case.op in LAYERS or case.spec.experts.weight_on_input or len(rows) < FEWEST:
        return Judgement(check="row_sizes", verdict=Verdict.PASS, facts={"row_sizes": f"not tried: {says}"})
    ids = inputs["topk_ids"] if case.op == "fused_experts" else inputs["inv_permuted_idx"]
    here = inputs.get("expert_map")
    present = ids >= 0 if here is None else (ids >= 0) & (here[np.maximum(ids, 0)] >= 0)
    weight = np.sqrt(np.square(np.where(present, to_float64(inputs["topk_weights"]), 0.0)).sum(axis=1))
    counted = weight > 0.0
    size = _root_mean_squares(base)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(counted, size / weight, 1.0)
        known = np.sqrt(np.mean(np.square(values.true), axis=1))[counted[rows]] / weight[rows][counted[rows]]
    if len(known) < FEWEST:
        return Judgement(check="row_sizes", verdict=Verdict.PASS, facts={"row_sizes": f"not tried: {says}"})
    least, most = float(known.min()), float(known.max())
    low, high = least * least / most, most * most / least
    wrong = counted & ~((ratio >= low) & (ratio <= high))
    numbers = {"least_row_size": float(ratio[counted].min()), "largest_row_size": float(ratio[counted].max())}
    if not wrong.any():
        return Judgement(check="row_sizes", verdict=Verdict.PASS, numbers=numbers)
    token = int(np.flatnonzero(wrong)[0])
    message = (
        f"{says[0].upper()}{says[1:]}: {ratio[token]:.3g} times the root sum of squared weights in token {token}, and "
        f"{least:.3g} to {most:.3g} times in the sampled tokens. Wrong: {names('token', np.flatnonzero(wrong))}."
    )
    return Judgement(check="row_sizes", verdict=Verdict.FAIL, message=message, numbers=numbers, where={"token": token})


def _crowd(case: Case, base: AnyArray, out: AnyArray, values: Values, declaration: Declaration) -> Judgement:
    """FAIL where a copy of a sampled token gives, at any place of the batch, what rounding does not explain."""
    del base, declaration
    of, z = crowd(case), z_limit(out.size)
    explains = np.isfinite(values.sigma) & (values.sigma > 0)
    bound = np.where(explains, z * np.where(explains, values.sigma, 0.0) + FLUSHED, 0.0)
    bound[np.isposinf(values.sigma)] = np.inf
    wrong = np.zeros(len(out), bool)
    worst, ratio = (0, 0), 0.0
    for start in range(0, len(out), ROWS):
        rows = slice(start, start + ROWS)
        error = np.abs(to_float64(out[rows]) - values.true[of[rows]])
        beyond = ~(error <= bound[of[rows]])
        wrong[rows] = beyond.any(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(beyond, error / bound[of[rows]], 0.0)
        excess = np.where(np.isnan(excess), np.inf, excess)
        if excess.max(initial=0.0) > ratio:
            row, place = np.unravel_index(int(np.argmax(excess)), excess.shape)
            worst, ratio = (start + int(row), int(place)), float(excess.max())
    numbers = {"wrong_rows": float(wrong.sum())}
    if not wrong.any():
        return Judgement(check=CALLS[0], verdict=Verdict.PASS, numbers=numbers)
    token, column = worst
    got, expected = float(out[token, column]), float(values.true[of[token], column])
    message = (
        f"Copies of the sampled tokens fill the batch, and each should give what its original gives. Token {token}, "
        f"column {column}: got {got:.6g}, expected {expected:.6g} (rounding explains "
        f"±{bound[of[token], column]:.2g}). Wrong: {names('token', np.flatnonzero(wrong))}."
    )
    verdict = Verdict.FAIL if finite_rows(out).all() else Verdict.PROVEN_WRONG
    return Judgement(check=CALLS[0], verdict=verdict, message=message, numbers=numbers, where={"token": token})


def _order(case: Case, base: AnyArray, out: AnyArray, values: Values, declaration: Declaration) -> Judgement:
    """FAIL where a token's output depends on its place in the batch by more than two kernels' roundings differ."""
    back = out[::-1]
    bits = f"u{out.itemsize}"
    differing = (np.ascontiguousarray(back).view(bits) != base.view(bits)).any(axis=1)
    numbers = {"other_bits_ratio": float(differing.mean())}
    if not differing.any():
        return Judgement(check=CALLS[1], verdict=Verdict.PASS, numbers=numbers)
    if declaration.batch_invariant:
        wrong, limit = differing, 0.0
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.sqrt(np.mean(np.square(values.true), axis=1))
            share = np.sqrt(np.mean(np.square(values.sigma), axis=1)) / size
        if not np.isfinite(share).any():
            return Judgement(check=CALLS[1], verdict=Verdict.PASS, numbers=numbers)
        limit = float(np.sqrt(2.0) * MANY_TIMES * share[np.isfinite(share)].max())
        wrong = ~(_root_mean_squares(back, base) <= limit * _root_mean_squares(base) + FLUSHED)
    numbers["limit_order_error"] = limit
    if not wrong.any():
        return Judgement(check=CALLS[1], verdict=Verdict.PASS, numbers=numbers)
    token = int(np.flatnonzero(wrong)[0])
    says = "The order of the tokens changes no token's output"
    explained = f" (rounding explains {limit:.2g} of a row's size)" if limit else " in every bit"
    message = f"{says}{explained}. Differing: {shares(np.repeat(wrong[:, None], 2, axis=1), 'token')}."
    verdict = Verdict.PROVEN_WRONG if limit == 0.0 or not finite_rows(out).all() else Verdict.FAIL
    return Judgement(check=CALLS[1], verdict=verdict, message=message, numbers=numbers, where={"token": token})


def _root_mean_squares(out: AnyArray, less: AnyArray | None = None) -> Float64:
    """[T]: of each row of out, or of its difference from another array."""
    parts = [np.zeros(0)]
    for start in range(0, len(out), ROWS):
        rows = slice(start, start + ROWS)
        values = to_float64(out[rows]) if less is None else to_float64(out[rows]) - to_float64(less[rows])
        parts.append(np.sqrt(np.mean(np.square(values), axis=1)))
    return np.concatenate(parts)
