"""What a whole layer should give when some tokens have more than one legal set of experts.

A fused layer returns no ids, so its choice cannot be seen. For each ambiguous token every legal set is tried, and
the one that is nearest to the kernel's output is what the token is judged against; a token with too many legal sets
is left out.
"""

from __future__ import annotations

import numpy as np

from moecheck import metrics
from moecheck.bounds import FLUSHED
from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.legal_sets import ambiguous_rows, choice_of, legal_sets
from moecheck.formats import Float64
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle, Values, reference_modules

MOST_SETS = 16
MOST_LEFT_OUT = 0.05


def layer_values(
    case: Case, out: Float64, oracle: Oracle, numerics: Numerics | None
) -> tuple[Values, Judgement | None]:
    """The values to judge `out` [T, H] against, and a judgement where ambiguity is worth a word (else None)."""
    values, inputs, routing = oracle.values(case, numerics), oracle.inputs(case), case.spec.routing
    choice = choice_of(case, inputs, numerics)
    tokens = np.flatnonzero(ambiguous_rows(choice, routing))
    if not len(tokens):
        return values, None
    sets = {int(token): legal_sets(choice, int(token), routing, most=MOST_SETS + 1) for token in tokens}
    left_out = [token for token, options in sets.items() if len(options) > MOST_SETS]
    best = values.copy()
    for alternative in range(max((len(options) for options in sets.values()), default=0)):
        _take_nearer(
            case, out, oracle, numerics, {t: o for t, o in sets.items() if t not in left_out}, alternative, best
        )
    lost = [token for token in left_out if not np.isfinite(out[token]).all() and np.isfinite(best.true[token]).all()]
    best.true[left_out] = np.nan
    share = len(left_out) / case.num_tokens
    numbers = {"ambiguous_share": len(tokens) / case.num_tokens, "left_out_share": share}
    if lost:
        message = f"Token {lost[0]} is not finite, which no choice of experts explains."
        where = {"token": lost[0], "column": int(np.flatnonzero(~np.isfinite(out[lost[0]]))[0])}
        return best, Judgement(
            check="ambiguity", verdict=Verdict.PROVEN_WRONG, message=message, numbers=numbers, where=where
        )
    verdict = Verdict.PASS if share <= MOST_LEFT_OUT else Verdict.INCONCLUSIVE
    message = f"{len(tokens)} of {case.num_tokens} tokens have several legal choices, {len(left_out)} were left out."
    return best, Judgement(check="ambiguity", verdict=verdict, message=message, numbers=numbers)


def _take_nearer(
    case: Case,
    out: Float64,
    oracle: Oracle,
    numerics: Numerics | None,
    sets: dict[int, list[tuple[int, ...]]],
    alternative: int,
    best: Values,
) -> None:
    """Replace the rows of `best` for which the given alternative explains `out` better."""
    rows = [token for token, options in sets.items() if alternative < len(options)]
    if not rows:
        return
    inputs, module = oracle.inputs(case), reference_modules()["topk_routing"]
    arguments = {"spec": case.spec.routing, **{n: inputs[n] for n in _ROUTER_INPUTS if n in inputs}}
    _, ids = module.topk_routing(**arguments)
    for token in rows:
        ids[token, : case.spec.routing.top_k] = sets[token][alternative]
    given = {name: value for name, value in arguments.items() if name not in ("token_ids", "tid2eid")}
    topk = (module.weights_of_ids(**given, topk_ids=ids)[rows], ids[rows])
    tried = oracle.layer_values(case, numerics, rows, topk)
    nearer = np.flatnonzero(_distance(out[rows], tried) < _distance(out[rows], best.rows(rows)))
    best.replace_rows(np.array(rows)[nearer], tried, nearer)


def _distance(out: Float64, values: Values) -> Float64:
    """[rows]: the largest |out - true| / sigma of each row."""
    error = metrics.abs_err(out, values.true)
    largest: Float64 = np.max(error / np.maximum(values.sigma, FLUSHED), axis=1, initial=0.0)
    return largest


_ROUTER_INPUTS = ("router_logits", "correction_bias", "per_expert_scale", "token_ids", "tid2eid")
