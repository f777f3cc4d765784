"""Routing weights under one contract after another, and what of a router's outputs is compared with them."""

from __future__ import annotations

import numpy as np

from moecheck import draw
from moecheck.cases import Case
from moecheck.formats import AnyArray, Float64, round_to, to_float64
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle, call_reference, reference_modules

from .candidates import ROUTER

UNSEEN = -np.inf  # stands for the weights of a token whose experts are not the reference's
LEAST_SEEN = 0.5  # share of the tokens that must have the reference's experts


def observation(case: Case, outputs: tuple[AnyArray, ...], oracle: Oracle) -> AnyArray | None:
    """What `identify` looks at of a kernel's outputs: the output, or a router's weights by ascending expert.

    The latter are [T, top_k] float64, UNSEEN for a token that chose other experts than the reference did, as equal
    scores allow; None where most tokens did.
    """
    if case.op != ROUTER:
        return outputs[0]
    top_k = case.spec.routing.top_k
    weights, ids = to_float64(outputs[0])[:, :top_k], outputs[1][:, :top_k].astype(np.int64)
    alike = (np.sort(ids, axis=1) == np.sort(_chosen(case, oracle), axis=1)).all(axis=1)
    if alike.mean() < LEAST_SEEN:
        return None
    return np.where(alike[:, None], np.take_along_axis(weights, np.argsort(ids, axis=1), axis=1), UNSEEN)


def routing_sigma(case: Case, oracle: Oracle) -> Float64:
    """Standard deviation of fp32 weights, [T, top_k] by ascending expert."""
    ids = _chosen(case, oracle)
    return _by_expert(oracle.weight_values(case, oracle.inputs(case), None, ids).sigma, ids)


class RoutingReplay:
    """The weights of the reference's choice, by ascending expert, under any contract whose `input` is resolved.

    noisy: those of a simulated kernel, off by what fp32 arithmetic is off by before the last store.
    """

    def __init__(self, case: Case, oracle: Oracle, *, noisy: bool) -> None:
        self._case, self._inputs, self._ids = case, oracle.inputs(case), _chosen(case, oracle)
        self._noise: Float64 | None = None
        if noisy:
            sigma = routing_sigma(case, oracle)
            numbers = draw.look_up(draw.philox(case.key, "noise", "weights"), draw.normal_quantiles(), sigma.shape)
            self._noise = numbers * sigma

    def value(self, stores: Numerics) -> Float64:
        """[T, top_k]. Where scores and weights are both low, so is each step between them, as in eager code."""
        last = "fp32" if self._noise is not None else stores.topk_weights
        weights = Oracle.weight_values(
            self._case,
            self._inputs,
            Numerics(scores=stores.scores, topk_weights=last),
            self._ids,
            low_steps="fp32" not in (stores.scores, stores.topk_weights),
        ).rounded
        weights = _by_expert(weights, self._ids)
        if self._noise is None:
            return weights
        noisy = weights + self._noise
        return noisy if stores.topk_weights == "fp32" else round_to(noisy, stores.topk_weights)


def _chosen(case: Case, oracle: Oracle) -> AnyArray:
    """The reference's ids, [T, top_k]."""
    _, ids = call_reference(reference_modules()[ROUTER].topk_routing, case, oracle.inputs(case))
    chosen: AnyArray = ids[:, : case.spec.routing.top_k]
    return chosen


def _by_expert(weights: Float64, ids: AnyArray) -> Float64:
    return np.take_along_axis(weights, np.argsort(ids, axis=1), axis=1)
