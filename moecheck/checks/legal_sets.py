"""Which sets of experts a token may choose.

Equal or nearly equal scores make several choices right, so ids are never compared for equality. A set S of top_k
experts is legal iff min over S of (score + eps) >= max outside S of (score - eps), where eps is how far rounding may
move a score. Grouped top-k applies the rule to the groups first, then to the experts inside the chosen groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from moecheck.bounds import score_eps
from moecheck.cases import Case
from moecheck.formats import Float64, to_float64
from moecheck.numerics import Numerics
from moecheck.oracle import reference_modules
from moecheck.spec import RoutingSpec

Bool = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a token's choice rests on: c [T, E] choice scores, eps [T, E] how far a kernel's may be from them,
    group and group_eps [T, G] the same for expert groups (None without groups).
    """

    c: Float64
    eps: Float64
    group: Float64 | None
    group_eps: Float64 | None


def choice_of(case: Case, inputs: dict[str, Any], numerics: Numerics | None) -> Choice:
    """The choice scores of a case's tokens with the rounding that a kernel of this contract may have."""
    module, routing = reference_modules()["topk_routing"], case.spec.routing
    if routing.selection == "hash":  # a table says which: 1 for these, 0 for the others, and no rounding
        ids = module.hashed_ids(token_ids=inputs["token_ids"], tid2eid=inputs["tid2eid"])
        named = _mask(ids, case.num_experts).astype(np.float64)
        return Choice(c=named, eps=np.zeros_like(named), group=None, group_eps=None)
    arguments: dict[str, Any] = {n: inputs[n] for n in ("router_logits", "correction_bias") if n in inputs}
    scores, c = module.scores_of(**arguments, spec=routing)
    by_logits = module.chooses_by_logits(routing)
    bias = to_float64(inputs["correction_bias"])[None] if routing.correction_bias == "select" else 0.0
    dtype = (numerics or Numerics()).resolve(case.dtype).scores
    exact = by_logits and routing.correction_bias == "none" and routing.softcap is None and dtype == "fp32"
    spread = 0.0 if by_logits or routing.scoring != "softmax" else _below_largest(arguments, routing)
    # A capped logit is itself rounded, relative to the cap: near saturation different logits become equal.
    spread = spread + (routing.softcap or 0.0)
    eps = np.zeros_like(c) if exact else score_eps(c - bias if by_logits else scores, bias, dtype, spread=spread)
    group = group_eps = None
    eps[np.isnan(c)] = 0.0
    c = np.where(np.isnan(c), -np.inf, c)  # of a NaN bias: chosen last, as by the reference
    if routing.num_expert_groups > 1:
        group = module.group_scores(c, spec=routing)
        size = _by_group(eps, routing).max(axis=-1, initial=0.0)
        group_eps = size * (1 if routing.group_score == "max" else 2) * 1.5  # a sum rounds once more
    return Choice(c=c, eps=eps, group=group, group_eps=group_eps)


def legal_rows(choice: Choice, ids: Ids, routing: RoutingSpec) -> Bool:
    """[T]: whether each token's set of routed ids is legal. ids: [T, top_k], distinct and in range."""
    chosen = _mask(ids, choice.c.shape[1])
    if choice.group is None:
        return _separated(choice.c, choice.eps, chosen, np.ones_like(chosen))
    module = reference_modules()["topk_routing"]
    own = _mask(module.top_ids(choice.group, routing.topk_groups), routing.num_expert_groups)
    legal = _legal_in_groups(choice, chosen, own, routing)
    for token in np.flatnonzero(~legal):  # rare in a correct kernel: another set of groups may be legal too
        one = _token(choice, int(token))
        legal[token] = any(
            _legal_in_groups(one, chosen[token : token + 1], kept, routing)[0] for kept in _legal_groups(one, routing)
        )
    return legal


def ambiguous_rows(choice: Choice, routing: RoutingSpec) -> Bool:
    """[T]: tokens that have more than one legal set of experts."""
    if choice.group is None or choice.group_eps is None:
        return _close(choice.c, choice.eps, routing.top_k)
    ambiguous = _close(choice.group, choice.group_eps, routing.topk_groups)
    module = reference_modules()["topk_routing"]
    masked = module.mask_groups(choice.c, spec=routing)
    eps = np.where(masked == choice.c, choice.eps, 0.0)
    ambiguous |= _close(masked, eps, routing.top_k)
    for token in np.flatnonzero(ambiguous):  # other groups may hold the same best experts
        ambiguous[token] = len(legal_sets(choice, int(token), routing, most=2)) > 1
    return ambiguous


def legal_sets(choice: Choice, token: int, routing: RoutingSpec, *, most: int) -> list[tuple[int, ...]]:
    """The legal sets of experts of one token, at most `most` of them, each in ascending order of ids."""
    one = _token(choice, token)
    everyone = np.ones((1, 1), dtype=np.bool_)
    found: dict[tuple[int, ...], None] = {}
    for kept in _legal_groups(one, routing) if one.group is not None else iter((everyone,)):
        inside = np.repeat(kept, one.c.shape[1] // kept.shape[1], axis=1)
        outside_value = 0.0 if routing.group_mask == "zero" else -np.inf
        c, eps = np.where(inside, one.c, outside_value), np.where(inside, one.eps, 0.0)
        allowed = _subsets(c[0], eps[0], routing.top_k)
        if routing.group_mask == "neg_inf":  # never from outside, even where a logit inside is -Inf as well
            allowed = (ids for ids in allowed if inside[0, list(ids)].all())
        for ids in islice(allowed, most):
            found[ids] = None
        if len(found) >= most:
            break
    return list(found)[:most]


def _below_largest(arguments: dict[str, Any], routing: RoutingSpec) -> Float64:
    """[T, E]: max l - l of the logits as scored, 0 where that is not finite."""
    logits = reference_modules()["topk_routing"].logits_of(**arguments, spec=routing)
    with np.errstate(invalid="ignore"):
        below = logits.max(axis=1, keepdims=True) - logits
    return np.where(np.isfinite(below), below, 0.0)


def _legal_in_groups(choice: Choice, chosen: Bool, kept: Bool, routing: RoutingSpec) -> Bool:
    """[T]: whether `chosen` is legal when the groups in `kept` ([T, G]) are the chosen ones."""
    inside = np.repeat(kept, chosen.shape[1] // kept.shape[1], axis=1)
    if routing.group_mask == "zero":  # masked experts take part with a score of 0
        filled = np.where(inside, choice.c, 0.0)
        return _separated(filled, np.where(inside, choice.eps, 0.0), chosen, np.ones_like(chosen))
    return _separated(choice.c, choice.eps, chosen, inside) & ~(chosen & ~inside).any(axis=1)


def _legal_groups(one: Choice, routing: RoutingSpec) -> Iterator[Bool]:
    """Each legal set of groups of a single token, as a [1, G] mask."""
    assert one.group is not None
    assert one.group_eps is not None
    for ids in _subsets(one.group[0], one.group_eps[0], routing.topk_groups):
        yield _mask(np.array([ids]), routing.num_expert_groups)


def _subsets(values: Float64, eps: Float64, count: int) -> Iterator[tuple[int, ...]]:
    """Every set of `count` indices whose lowest value + eps is not below the highest value - eps outside."""
    low, high = values - eps, values + eps
    rivals = (high[None, :] >= low[:, None]).sum(axis=1) - 1  # others that may be chosen where this one is not
    above = (low[None, :] > high[:, None]).sum(axis=1)  # others that must be chosen where this one is
    sure = set(np.flatnonzero(rivals < count).tolist())
    open_ids = [int(i) for i in np.argsort(-values, kind="stable") if above[i] < count and int(i) not in sure]
    everything = np.ones((1, len(values)), dtype=np.bool_)
    for rest in combinations(open_ids, count - len(sure)):
        ids = tuple(sorted(sure | set(rest)))
        if _separated(values[None], eps[None], _mask(np.array([ids]), len(values)), everything)[0]:
            yield ids


def _separated(c: Float64, eps: Float64, chosen: Bool, candidates: Bool) -> Bool:
    """[T]: min over chosen of (c + eps) >= max over the other candidates of (c - eps)."""
    low = np.where(chosen, c + eps, np.inf).min(axis=1, initial=np.inf)
    high = np.where(candidates & ~chosen, c - eps, -np.inf).max(axis=1, initial=-np.inf)
    return np.asarray(low >= high)


def _close(values: Float64, eps: Float64, count: int) -> Bool:
    """[T]: whether the count-th largest value cannot be told from the next one."""
    if count >= values.shape[1]:
        return np.zeros(len(values), dtype=np.bool_)
    order = np.argsort(-values, axis=1, kind="stable")
    chosen = _mask(order[:, :count], values.shape[1])
    low = np.where(chosen, values - eps, np.inf).min(axis=1)
    high = np.where(chosen, -np.inf, values + eps).max(axis=1)
    return np.asarray(~(low > high))


def _mask(ids: Ids, width: int) -> Bool:
    mask = np.zeros((len(ids), width), dtype=np.bool_)
    np.put_along_axis(mask, ids.astype(np.int64), True, axis=1)
    return mask


def _token(choice: Choice, token: int) -> Choice:
    rows = slice(token, token + 1)
    return Choice(
        c=choice.c[rows],
        eps=choice.eps[rows],
        group=None if choice.group is None else choice.group[rows],
        group_eps=None if choice.group_eps is None else choice.group_eps[rows],
    )


def _by_group(values: Float64, routing: RoutingSpec) -> Float64:
    groups = routing.num_expert_groups
    return values.reshape(len(values), groups, values.shape[1] // groups)
